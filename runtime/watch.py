"""Where a NaN or an Inf begins: the first kernel that leaves one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from runtime.engine import Engine
from runtime.observer import Observer


class Watch(Observer):
    """Looks at the tensors of every kernel of ``engines`` inside a ``with`` block, which takes time.

    ``found`` has, for "nan" and for "inf", component and kernel that it was seen in first. An Inf may be meant: a mask
    has them.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        super().__init__(engines)
        self.found: dict[str, tuple[str, str]] = {}

    def _observer(self, component: str) -> Callable[..., int]:
        def observe(_function: object, name: str, before: bool, _result: object, *arguments: object) -> int:
            if before or len(self.found) == 2:
                return 0
            for array in (argument.numpy() for argument in arguments if hasattr(argument, "numpy")):
                if not np.issubdtype(array.dtype, np.integer) and not np.isfinite(array).all():
                    kind = "nan" if np.isnan(array).any() else "inf"
                    self.found.setdefault(kind, (component, name))
            return 0

        return observe
