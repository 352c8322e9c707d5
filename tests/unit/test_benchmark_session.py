"""A session: where references and converted models lie, however many sections ask for them."""

from dataclasses import replace

import pytest

from backends.peer import PICTURE, Settings
from benchmarks import session
from benchmarks.session import Session


@pytest.fixture
def asked(monkeypatch):
    """Folders that workers were given; each answers with one of the model inside, as ``backends.reference`` does."""
    folders = []

    class Worker:
        def __init__(self, task, backend, components, settings, log):
            self.settings = settings
            folders.append(settings.folder)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def start(self):
            made = replace(self.settings, folder=self.settings.folder / "model-64x64", height=64, width=64)
            return {"settings": made.to_json()}

    monkeypatch.setattr(session, "Worker", Worker)
    return folders


def test_each_section_finds_what_the_one_before_has_made(asked, tmp_path):
    common = {"model": "m", "dtype": "float32", "height": None, "width": None, "num_threads": 1, "steps": 3}
    made = Session(Settings(**common, folder=tmp_path, artifacts_dir=None), tmp_path)
    for _ in range(3):
        made.make_references([PICTURE])
        assert made.settings.folder == tmp_path / "model-64x64" and made.settings.height == 64
    assert asked == [tmp_path] * 3
