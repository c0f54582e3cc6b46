"""Sealed datasets to models, and models to scores."""

import lazy_loader

# `__init__.pyi` lists the names once, for type checkers and for this: each module is imported
# when the first of its names is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
