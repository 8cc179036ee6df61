"""What a run tells while it trains: the bar, TensorBoard's files, a profile, and the step at which it broke."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np
import optax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from distcam_jax.cluster import is_primary
from distcam_jax.files import write_atomically

_NAMES_SHOWN = 3


class Progress:
    """The progress bar and TensorBoard's files of the primary process."""

    def __init__(self, workdir: Path, first: int, steps: int, batch: int, schedule: optax.Schedule):
        self.bar = tqdm(
            total=steps, initial=first, unit="step", dynamic_ncols=True, smoothing=0.1, disable=not is_primary()
        )
        self.writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=first) if is_primary() else None
        self.batch, self.schedule = batch, schedule
        self.since, self.step = time.monotonic(), first

    def update(self, step: int, values: dict[str, float]) -> None:
        """Shows the metrics of a step."""
        now = time.monotonic()
        rate = (step - self.step) * self.batch / max(now - self.since, 1e-9)
        values = values | {"images_per_second": rate, "learning_rate": float(np.asarray(self.schedule(step)))}
        self.bar.update(step - self.step)
        self.bar.set_postfix_str(
            f"loss {values['loss']:.3f}, accuracy {values['accuracy']:.3f}, {rate:.0f} images/s", refresh=False
        )
        self._write("train", step, values)
        self.since, self.step = now, step

    def validated(self, step: int, accuracy: float) -> None:
        """Shows the accuracy on held-out images; the time it took is not the training's."""
        self._write("validation", step, {"accuracy": accuracy})
        self.since = time.monotonic()

    def _write(self, group: str, step: int, values: dict[str, float]) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Ends the bar and writes what is left to write."""
        self.bar.close()
        if self.writer is not None:
            self.writer.close()


class Recent:
    """The steps whose metrics nobody has looked at yet: looking would make the host wait for the device.

    Attributes:
      ahead: steps that may be under way at once; each of them holds a batch on the device.
    """

    ahead = 2

    def __init__(self, workdir: Path, file_name: Callable[[int], str]):
        self.workdir, self.file_name = workdir, file_name
        self.steps: list[tuple[int, np.ndarray, dict[str, jax.Array]]] = []

    def add(self, step: int, index: np.ndarray, metrics: dict[str, jax.Array]) -> None:
        """Notes a step that has been started.

        Args:
          step: its number.
          index: which examples this process's part of its batch holds.
          metrics: of the step.
        """
        self.steps.append((step, index, metrics))
        if len(self.steps) > self.ahead:
            jax.block_until_ready(self.steps[-1 - self.ahead][2])

    def check(self) -> dict[str, float]:
        """Looks at all of them.

        Returns:
          The metrics of the last one.

        Raises:
          FloatingPointError: at the first loss or gradient that is not finite: names the step and its images, whose
            full list goes to `not_finite.json` in the run's folder.
        """
        values: dict[str, float] = {}
        fetched = jax.device_get([metrics for _, _, metrics in self.steps])
        for (step, index, _), metrics in zip(self.steps, fetched, strict=True):
            values = {name: float(value) for name, value in metrics.items()}
            for name in ("loss", "gradient_norm"):
                if not np.isfinite(values[name]):
                    self._stop(step, index, name.replace("_", " "), values[name])
        self.steps.clear()
        return values

    def _stop(self, step: int, index: np.ndarray, name: str, value: float) -> None:
        names = [self.file_name(int(i)) for i in index]
        part = f"_{jax.process_index()}" if jax.process_count() > 1 else ""
        path = self.workdir / f"not_finite{part}.json"
        text = json.dumps({"step": step, name: str(value), "images": names}, indent=2) + "\n"
        write_atomically(path, lambda temporary: temporary.write_text(text))
        shown = ", ".join(names[:_NAMES_SHOWN]) + (
            f" and {len(names) - _NAMES_SHOWN} more" * (len(names) > _NAMES_SHOWN)
        )
        raise FloatingPointError(
            f"the {name} is {value} at step {step}, on the images {shown} (all in {path}); the last checkpoint is "
            "kept. Look at these images, or lower config.optimizer.learning_rate"
        )


class Profile:
    """A trace of `profile` steps in the run's folder `profile`, after ten others, or the first where there are fewer.

    TensorBoard, XProf and Perfetto show it.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path, first: int, steps: int):
        self.workdir = workdir
        self.begin = min(first + 10, max(first + 1, steps - config.profile), steps - 1)
        self.end = min(steps, self.begin + config.profile) if config.profile else None
        self.is_tracing = False

    def before(self, step: int) -> None:
        """To be called before a step is started."""
        if self.end is not None and step == self.begin + 1:
            jax.profiler.start_trace(str(self.workdir / "profile"))
            self.is_tracing = True

    def after(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """To be called when a step has been started."""
        if step == self.end:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Writes the trace, if one is being taken."""
        if self.is_tracing:
            self.is_tracing = False
            jax.profiler.stop_trace()
