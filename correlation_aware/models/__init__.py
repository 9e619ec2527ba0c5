"""Networks: tensors in, tensors out. One file a family, which registers its names when it is imported.

To add a family, write one file here; every module of this folder is imported by the zoo, so no list has to be
changed. From top to bottom, as `sbt.py`: docstring with the source and its license, layers, a network that
derives from `TwoInputModel` (`contract.py`), a function that renames the keys of others' checkpoints
(`register_checkpoint_format`), and one function per name:

    @register_model
    def acme_base(**kwargs) -> AcmeNet: ...

    @register_model
    def acme_base_track(head: str = "mixer", **kwargs) -> TrackModel:
        return TrackModel.build(AcmeNet(**kwargs), head)

Weights are entries of `weights_manifest.json`, see `correlation_aware.weights`. `docs/plugins.md` has the
contract as a table, and the same for a family in another package. `tests/test_models.py` tests every name of
the registry.
"""
