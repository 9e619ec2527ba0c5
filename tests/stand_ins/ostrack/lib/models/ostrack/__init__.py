from .ostrack import build_ostrack as build_ostrack
