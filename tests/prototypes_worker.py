"""Passes over images in processes of their own: one to be killed, and one of several that compute together.

python -m tests.prototypes_worker killed FOLDER
python -m tests.prototypes_worker together FOLDER PORT PROCESS
"""

import shutil
import sys
import time
from pathlib import Path

import numpy as np

CLASSES, CHANNELS, BATCH, BATCHES = 7, 12, 4, 12
IDENTITY = {"weights_hash": "ab12", "batch": BATCH, "preprocessing": {"mean": [0.5, 0.25]}}


def whole_batch(number, rows=BATCH):
    """The batch of that number: large means and tiny differences, so that another order of adding shows."""
    generator = np.random.default_rng(number)
    images = (1000 + generator.random((rows, 2, 2, 3)) * generator.choice([1e-3, 1e3], (rows, 2, 2, 3))).astype(
        np.float32
    )
    labels = generator.integers(0, CLASSES - 1, rows)  # the last class has no images
    mask = np.ones(rows, bool) if number % 3 else np.arange(rows) != rows - 2
    return {"image": images, "label": labels.astype(np.int32), "mask": mask}


def batches_from(first, until=BATCHES, rows=BATCH, part=slice(None)):
    """Batches from one on; an error in the place of batch `until` if it is not the last."""
    for number in range(first, BATCHES):
        if number == until:
            raise InterruptedError
        yield {name: value[part] for name, value in whole_batch(number, rows).items()}


def flat(images):
    """An embedding whose result is the same on every back end: the pixels themselves."""
    return images.reshape(len(images), -1)


def run_until_killed(folder):
    """Goes on slowly, so that the reader has time to kill it."""
    from distcam_jax.prototypes import PartialSums, compute_prototypes

    def slow(images):
        time.sleep(0.05)
        return flat(images)

    partial = PartialSums(folder / "prototypes.safetensors", IDENTITY, every=3)
    compute_prototypes(slow, batches_from, CLASSES, partial=partial)


def run_together(folder, port, process):
    """Both processes compute the prototypes, are stopped twice, lose a file, and go on."""
    import jax

    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
    from distcam_jax.prototypes import PartialSums, compute_prototypes

    sharding = jax.sharding.NamedSharding(jax.make_mesh((4,), ("data",)), jax.sharding.PartitionSpec("data"))
    forward = jax.jit(flat)
    part = slice(process * BATCH, (process + 1) * BATCH)
    starts = []

    def embed(images):
        array = forward(jax.make_array_from_process_local_data(sharding, images))
        assert not array.is_fully_addressable
        return array

    def stopped_at(until):
        def batches(first):
            starts.append(first)
            return batches_from(first, until, 2 * BATCH, part)

        return batches

    def partial_files():
        return sorted(folder.glob(f"p.partial-{process:05d}-*"))

    whole, counts = compute_prototypes(embed, stopped_at(None), CLASSES)
    partial = PartialSums(folder / "p.safetensors", IDENTITY, every=2)
    for until, kept in ((5, 2), (7, 4)):
        try:
            compute_prototypes(embed, stopped_at(until), CLASSES, partial=partial)
        except InterruptedError:
            (path,) = partial_files()
            assert path.name.endswith(f"-{kept:09d}.safetensors"), path
            shutil.copy(path, folder / f"copy-{process}-{kept}")
    # As if the second process had been killed before it wrote its sums of four batches, and the first one after that.
    shutil.copy(folder / f"copy-{process}-2", folder / f"p.partial-{process:05d}-{2:09d}.safetensors")
    if process == 1:
        (folder / f"p.partial-{process:05d}-{4:09d}.safetensors").unlink()
    again, _ = compute_prototypes(embed, stopped_at(None), CLASSES, partial=partial)
    partial.remove()
    np.savez(folder / f"found-{process}.npz", whole=whole, counts=counts, again=again, starts=starts)


if __name__ == "__main__":
    if sys.argv[1] == "killed":
        run_until_killed(Path(sys.argv[2]))
    else:
        run_together(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
