"""The input pipeline with worker processes, which are spawned and so need a script of their own."""

import os
import pathlib
import subprocess
import sys
import textwrap

import distcam_jax

WORKER_SCRIPT = """
    import multiprocessing, os, signal
    from absl import app, flags
    import test_input_pipeline as helpers
    from distcam_jax.input_pipeline import make_eval_batches

    FLAGS = flags.FLAGS
    flags.DEFINE_string("greeting", None, "A flag that must be given.", required=True)

    class FlagSource:
        '''Reads a flag, as sources that look up a directory do.'''

        def __init__(self, examples):
            self.examples = examples

        def __len__(self):
            return len(self.examples)

        def __getitem__(self, index):
            flags.FLAGS.greeting
            return self.examples[index]

    def main(argv):
        source = FlagSource(helpers.photo_source(7))
        reference = helpers.take(helpers.train(source, augmentation=helpers.CROP), 5)
        batches = helpers.train(source, augmentation=helpers.CROP, num_workers=2)
        head = [next(batches) for _ in range(3)]
        state = batches.get_state()
        batches.close()
        helpers.assert_same(reference[:3], head)
        batches = helpers.train(source, augmentation=helpers.CROP)
        batches.set_state(state)
        helpers.assert_same(reference[3:], helpers.take(batches, 2))
        evaluated = list(make_eval_batches(source, batch_size=2, image_size=5, resize="center_crop"))
        again = make_eval_batches(source, batch_size=2, image_size=5, resize="center_crop", num_workers=2)
        helpers.assert_same(evaluated, list(again))
        report_killed_worker(source)

    def report_killed_worker(source):
        batches = helpers.train(source, augmentation=helpers.CROP, num_workers=2)
        next(batches)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        try:
            for _ in range(1000):
                next(batches)
        except OSError as error:
            print("KILLED", batches.get_state()["next_batch"] < 50, error)
        batches.close()

    def work_before_flags_are_parsed():
        plain = helpers.flat_source(3)
        alone = list(make_eval_batches(plain, batch_size=2, image_size=4))
        plain[2]["image"] = plain[2]["image"][:-20]
        try:
            helpers.take(helpers.train(plain, batch_size=1, num_workers=2), 3)
        except ValueError as error:
            print("TRAIN", error)
        batches = iter(make_eval_batches(plain, batch_size=2, image_size=4, num_workers=1))
        helpers.assert_same(alone[:1], [next(batches)])
        try:
            next(batches)
        except ValueError as error:
            print("EVALUATE", error)

    if __name__ == "__main__":
        work_before_flags_are_parsed()
        app.run(main)
"""


def test_makers_with_worker_processes_give_the_same_batches(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(WORKER_SCRIPT))
    folders = [pathlib.Path(distcam_jax.__file__).parents[1], pathlib.Path(__file__).parent]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, str(script), "--greeting=hello"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    train, evaluate, killed = done.stdout.splitlines()
    assert train.startswith("TRAIN image '2.png' ends early")
    assert evaluate.startswith("EVALUATE image '2.png' ends early")
    assert killed.startswith(
        "KILLED True a process that reads images has ended (Worker process was terminated unexpectedly"
    )
