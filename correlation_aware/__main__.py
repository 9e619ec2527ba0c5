"""`python -m correlation_aware` is `correlation-aware`, also in a checkout that is not installed."""

from correlation_aware.cli import main

if __name__ == "__main__":
    main()
