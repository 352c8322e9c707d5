"""A session whose backends draw at once, in seconds that a test decides, in the place of processes."""

from contextlib import contextmanager
from dataclasses import replace

from PIL import Image

from backends.peer import PICTURE, Settings
from benchmarks.workers import WorkerError

SECONDS = {"tvm": 1.0, "eager": 4.0, "openvino": 2.0}


class FakeWorker:
    """Draws in ``SECONDS`` of its backend a step, a millisecond more each time; says what it was asked in ``log``."""

    def __init__(self, session, name, dtype):
        self.session, self.name, self.dtype = session, name, dtype
        self.count = 0

    def start(self):
        if self.name in self.session.broken:
            raise WorkerError("no luck")
        return {"prepare_seconds": {"load": 0.5}, "size": 1000}

    def draw(self, steps, warm=True):
        self.session.log.append((self.name, steps, warm))
        self.count += 1
        fails = self.session.fails.get(self.name)
        if fails is not None and self.count > fails[0]:
            raise fails[1]
        unet = SECONDS[self.name] * steps * self.session.factor + self.count / 1000
        answer = {"total_seconds": unet + 1, "text_seconds": 0.25, "unet_seconds": unet, "vae_seconds": 0.75}
        picture = self.session.settings.output_folder(PICTURE, self.name) / "picture.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "teal").save(picture)
        return {**answer, "peak_memory": 5_000_000, "psnr": 70.0 - self.count, "picture": str(picture)}

    def close(self):
        self.session.log.append((self.name, "closed"))


class FakeSession:
    """The part of ``Session`` that pictures are drawn with."""

    def __init__(self, work, factor=1.0, **changes):
        common = {"model": "m", "dtype": "float32", "height": 64, "width": 72, "num_threads": 1, "steps": 3}
        self.settings = Settings(**common, folder=work / "m-72x64", artifacts_dir=None, model_bytes=100, **changes)
        self.work, self.factor = work, factor
        self.refused, self.broken, self.fails, self.log, self.converted = {}, set(), {}, [], []

    def variant(self, **changes):
        other = FakeSession(self.work, self.factor)
        other.settings = replace(self.settings, **changes)
        other.broken, other.fails, other.log, other.converted = self.broken, self.fails, self.log, self.converted
        return other

    def make_references(self, components):
        self.log.append(("references", *components))

    def convert(self, backends, components, dtype):
        self.converted.append((tuple(backends), self.settings.variant))

    @contextmanager
    def worker(self, task, name, components, dtype):
        yield FakeWorker(self, name, dtype)
