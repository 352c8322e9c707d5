"""Something that looks at every kernel of some engines, for as long as a ``with`` block lasts."""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TypeVar

from runtime.engine import Engine

Self = TypeVar("Self", bound="Observer")


class Observer(ABC):
    """Is told of every kernel of ``engines`` inside a ``with`` block. Engines outside of it run without any cost."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines

    def __enter__(self: Self) -> Self:
        for component, engine in self._engines.items():
            engine.instrument(self._observer(component), functools.partial(self._around, component))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for engine in self._engines.values():
            engine.instrument(None)

    @abstractmethod
    def _observer(self, component: str) -> Callable[..., int]:
        """Return what is called around each kernel of a component, see ``Engine.instrument``."""

    def _around(self, _component: str, _function: str) -> contextlib.AbstractContextManager[None]:
        """Return what each call of a component's function is made within."""
        return contextlib.nullcontext()
