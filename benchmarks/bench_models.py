"""Speed, compile time and memory of the models beside torchvision's in eager PyTorch.

    python benchmarks/bench_models.py
    python benchmarks/bench_models.py --models=densenet161 --remat --dtype=bfloat16 --output=metrics.json
    python benchmarks/bench_models.py --models= --compile=resnet101,densenet201

Both train with the same batch, the same number of threads, and SGD with Nesterov momentum. The alternatives take turns
within one run, so a busy machine slows all of them alike; ratios are formed turn by turn. Start and memory are those
of processes that each run one library's training step and nothing else.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import operator
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import optax
from flax import nnx
from measure import (
    CLASSES,
    LEARNING_RATE,
    MOMENTUM,
    OneLineParser,
    machine,
    median_interval,
    output_file,
    peak_resident_mib,
    random_batch,
    spread,
    take_turns,
    whole_number,
)

from distcam_jax import losses
from distcam_jax.models import create_model
from distcam_jax.models.convolution import compiler_options
from distcam_jax.models.densenet import DENSENETS
from distcam_jax.models.resnet import RESNETS

NAMES = (*RESNETS, *DENSENETS)  # the models that torchvision has too
SMALLEST = 32  # pixels, the total stride of every model
HAS_TORCH = all(importlib.util.find_spec(name) is not None for name in ("torch", "torchvision"))


def enable_cache(folder):
    """Keeps every compiled program in a folder, however quickly it was compiled."""
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# ---- arguments


def model_names(text):
    """Names that stand between commas."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in NAMES:
            raise argparse.ArgumentTypeError(f"unknown model {name!r}; choose from {', '.join(NAMES)}")
    return names


def parse_arguments():
    """Reads what to measure and where to write the figures."""
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=model_names, default="resnet18,resnet50,densenet161")
    parser.add_argument("--compile", type=model_names, default="", help="models of which only the start is measured")
    parser.add_argument("--batch", type=whole_number, default=16, help="images in a batch")
    parser.add_argument("--size", type=lambda text: whole_number(text, SMALLEST), default=224, help="height and width")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation")
    parser.add_argument("--remat", action="store_true", help="also train the DenseNets with remat=True")
    parser.add_argument("--repeats", type=whole_number, default=11, help="turns of each alternative")
    parser.add_argument("--seed", type=lambda text: whole_number(text, 0), default=0)
    parser.add_argument("--output", type=output_file, help="JSON file for the figures")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.models and not arguments.compile:
        parser.error("--models and --compile are both empty: nothing to measure")
    if arguments.batch == 1 and arguments.size < 2 * SMALLEST:
        parser.error(f"--batch=1 needs --size of at least {2 * SMALLEST}: statistics of one value have no variance")
    if arguments.remat and not set(DENSENETS).intersection(arguments.models + arguments.compile):
        parser.error("--remat needs a DenseNet among --models or --compile")
    return arguments


# ---- our models


def build(problem, remat=False):
    """The model, its initial weights made in one program."""
    options = {"num_classes": CLASSES, "dtype": problem["dtype"], "remat": remat}
    return nnx.jit(lambda: create_model(problem["name"], rngs=nnx.Rngs(problem["seed"]), **options))()


def batch_of(problem):
    """Images and labels on the device."""
    return jax.device_put(random_batch(batch=problem["batch"], size=problem["size"], seed=problem["seed"]))


def compile_timed(function, *arguments, donate=()):
    """The compiled function, and what that took and what memory it asks for, in seconds and MiB."""
    start = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=donate, compiler_options=compiler_options()).lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    finished = time.perf_counter()
    analysis = compiled.memory_analysis()
    kinds = ("temp", "argument", "output", "alias")
    memory = {kind: getattr(analysis, f"{kind}_size_in_bytes") / 2**20 for kind in kinds}
    # What is donated is counted as argument and as output, but is there once.
    memory["total"] = memory["temp"] + memory["argument"] + memory["output"] - memory["alias"]
    return compiled, {"trace_seconds": traced - start, "compile_seconds": finished - traced, "memory_mib": memory}


def make_forward(problem):
    """A function without arguments, class scores in evaluation mode, and the costs of compiling it."""
    model = build(problem)
    model.eval()
    graph, params, statistics = nnx.split(model, nnx.Param, ...)
    images, _ = batch_of(problem)

    def forward(params, statistics, images):
        return nnx.merge(graph, params, statistics, copy=True)(images)[0]

    compiled, costs = compile_timed(forward, params, statistics, images)
    return lambda: compiled(params, statistics, images), costs


def make_step(problem, remat=False):
    """A function without arguments that does one training step, the costs of compiling it, the parameters' number."""
    model = build(problem, remat)
    model.train()
    graph, params, statistics = nnx.split(model, nnx.Param, ...)
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM, nesterov=True)
    state = (params, statistics, optimizer.init(params))
    images, labels = batch_of(problem)

    def loss_fn(params, statistics, images, labels):
        model = nnx.merge(graph, params, statistics, copy=True)
        loss = losses.softmax_cross_entropy(model(images)[0], labels)
        return loss, nnx.split(model, nnx.Param, ...)[2]

    def step(state, images, labels):
        params, statistics, momentum = state
        (loss, statistics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params, statistics, images, labels)
        updates, momentum = optimizer.update(gradients, momentum, params)
        return (optax.apply_updates(params, updates), statistics, momentum), loss

    compiled, costs = compile_timed(step, state, images, labels, donate=0)

    def run():
        nonlocal state
        state, loss = compiled(state, images, labels)
        return state, loss

    return run, costs, sum(leaf.size for leaf in jax.tree.leaves(params))


# ---- start and memory, in processes of their own


def child(problem):
    """Two steps; before the first and after each, a line of JSON that the reader answers once it has looked at us."""
    print("{}", flush=True)
    sys.stdin.readline()
    enable_cache(problem["cache"])
    step, costs, parameters = make_step(problem, problem["remat"])
    for _ in range(2):
        _, loss = jax.block_until_ready(step())
        record = {"loss": float(loss), "parameters": parameters, **costs}
        memory = jax.local_devices()[0].memory_stats()  # None on a CPU
        if memory:
            record["device_peak_mib"] = memory["peak_bytes_in_use"] / 2**20
        print(json.dumps(record), flush=True)
        sys.stdin.readline()


def run_child(script, *arguments):
    """Runs a script that prints a line of JSON before the first and after each of two training steps.

    Returns:
        What the last line says; the seconds from the start of the process to the end of its imports and to the end of
        its first step; and the most memory that it had resident in MiB, by then and in the end.
    """
    lines = []
    start = time.perf_counter()
    command = [sys.executable, str(script), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                lines.append((time.perf_counter() - start, peak_resident_mib(process.pid), json.loads(line)))
                process.stdin.write("\n")
                process.stdin.flush()
    if process.returncode or len(lines) != 3:
        command = f"{pathlib.Path(script).name} {' '.join(arguments)}"
        raise RuntimeError(f"a process of its own ended with status {process.returncode}: {command}")
    (import_seconds, import_mib, _), (step_seconds, _, _), (_, peak_mib, record) = lines
    return record | {
        "import_seconds": import_seconds,
        "import_resident_mib": import_mib,
        "first_step_seconds": step_seconds,
        "peak_resident_mib": peak_mib,
    }


def measure_start(problem, remat=False):
    """Start and memory of the training step, by name: ours with an empty and a filled compilation cache, torch's."""
    this, suffix = pathlib.Path(__file__), " remat" if remat else ""
    result = {}
    with tempfile.TemporaryDirectory() as cache:
        for state in ("cold", "warm"):
            options = json.dumps(problem | {"remat": remat, "cache": cache})
            result[f"ours{suffix}, {state}"] = run_child(this, "--child", options)
    if HAS_TORCH:
        options = json.dumps(problem | {"memory_efficient": remat})
        result["torch memory_efficient" if remat else "torch"] = run_child(this.with_name("torch_models.py"), options)
    if len({record["parameters"] for record in result.values()}) != 1:
        raise RuntimeError(f"{problem['name']}: ours and torchvision's differ in their number of parameters")
    return result


# ---- speed, in turns


def compare(seconds):
    """Milliseconds of every alternative, and the ratios of its times to ours."""
    ratios = {name: list(map(operator.truediv, times, seconds["ours"])) for name, times in seconds.items()}
    return {
        "milliseconds": {name: spread([1e3 * t for t in times]) for name, times in seconds.items()},
        "time_over_ours": {
            name: spread(values) | median_interval(values) for name, values in ratios.items() if name != "ours"
        },
        "turns_milliseconds": {name: [1e3 * t for t in times] for name, times in seconds.items()},
    }


def measure_speed(problem, repeats, remat):
    """Forward and training step: their times, and what compiling them without a cache costs."""
    torch_models = importlib.import_module("torch_models") if HAS_TORCH else None
    if torch_models:
        torch_models.prepare()
    forward, costs = make_forward(problem)
    alternatives, compiled = {"ours": forward}, {"forward": costs}
    if torch_models:
        alternatives["torch"] = torch_models.make_forward(problem)
    times = {"forward": compare(take_turns(alternatives, repeats))}
    alternatives = {}
    for again in (False, True) if remat else (False,):
        suffix = " remat" if again else ""
        alternatives[f"ours{suffix}"], compiled[f"step{suffix}"], _ = make_step(problem, again)
        if torch_models:
            name = "torch memory_efficient" if again else "torch"
            alternatives[name], _ = torch_models.make_step(problem, again)
    return {"times": times | {"step": compare(take_turns(alternatives, repeats))}, "compiled": compiled}


def about_machine():
    """As `machine`, with the versions of what is compared."""
    about = machine()
    for package in ("jaxlib", "flax", "optax", "torch", "torchvision"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            about["versions"][package] = importlib.metadata.version(package)
    return about


def measure(arguments):
    """All figures, model by model, as they are written to JSON: printed and written after each model."""
    output = arguments["output"]
    metrics = {
        "arguments": {key: value for key, value in arguments.items() if key not in ("output", "child")},
        "machine": about_machine(),
        "models": {},
    }
    print_machine(metrics)
    for name in dict.fromkeys(arguments["models"] + arguments["compile"]):
        problem = {"name": name} | {key: arguments[key] for key in ("batch", "size", "dtype", "seed")}
        remat = arguments["remat"] and name in DENSENETS
        result = {"start": measure_start(problem) | (measure_start(problem, remat=True) if remat else {})}
        if name in arguments["models"]:
            result |= measure_speed(problem, arguments["repeats"], remat)
        metrics["models"][name] = result
        print_model(name, result)
        if output:
            output.write_text(json.dumps(metrics, indent=2) + "\n")


# ---- tables


def print_machine(metrics):
    """Prints what is measured, and with what."""
    about, versions = metrics["machine"], metrics["machine"]["versions"]
    print(f"{about['date']}  {about['processor']}, {about['cores']} cores, load {about['load']:.1f}")
    print(f"{about['back_end']} ({about['device']}), " + ", ".join(f"{key} {value}" for key, value in versions.items()))
    print(metrics["arguments"])
    if not HAS_TORCH:
        print("torch: skipped, PyTorch or torchvision is not installed; the figures are ours alone")


def print_model(name, result):
    """Prints the figures of one model."""
    for what, figures in result.get("times", {}).items():
        title = f"{name}, {what}"
        print(f"\n{title:30}{'ms':>10}{'min..max':>18}{'/ ours':>9}{'95 %':>13}{'min..max':>13}")
        for key, times in figures["milliseconds"].items():
            line = f"  {key:28}{times['median']:10.1f}" + f"{times['min']:.1f}..{times['max']:.1f}".rjust(18)
            ratio = figures["time_over_ours"].get(key)
            if ratio:
                line += f"{ratio['median']:9.2f}" + f"{ratio['low']:.2f}..{ratio['high']:.2f}".rjust(13)
                line += f"{ratio['min']:.2f}..{ratio['max']:.2f}".rjust(13)
            print(line)
    if "compiled" in result:
        title = f"{name}, compiled without a cache"
        print(f"\n{title:40}{'trace s':>9}{'compile s':>11}{'temporary MiB':>15}{'all MiB':>10}")
        for key, costs in result["compiled"].items():
            memory = costs["memory_mib"]
            line = f"  {key:38}{costs['trace_seconds']:9.2f}{costs['compile_seconds']:11.2f}"
            print(f"{line}{memory['temp']:15.0f}{memory['total']:10.0f}")
    title = f"{name}, a process that trains"
    print(f"\n{title:40}{'to 1st step s':>14}{'compile s':>11}{'imports MiB':>13}{'peak MiB':>10}{'device MiB':>12}")
    for key, record in result["start"].items():
        columns = {"compile_seconds": "11.2f", "import_resident_mib": "13.0f", "peak_resident_mib": "10.0f"}
        columns["device_peak_mib"] = "12.0f"
        line = f"  {key:38}{record['first_step_seconds']:14.2f}"
        for column, form in columns.items():
            figure = record.get(column)
            line += "-".rjust(int(form[:2])) if figure is None else f"{figure:{form}}"
        print(line, flush=True)


def main():
    """Measures, prints and writes."""
    arguments = parse_arguments()
    # JAX would take most of a GPU's memory at its first use; PyTorch has to share the GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        if arguments.child:
            child(json.loads(arguments.child))
        else:
            jax.config.update("jax_enable_compilation_cache", False)
            measure(vars(arguments))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{pathlib.Path(__file__).name}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
