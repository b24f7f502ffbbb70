"""Devices and processes. The only file that names a mesh, a device or a collective.

Training and fixed-grid sampling are one `jax.jit` program over a mesh with the single axis `data`: the batch is split,
everything else replicated, and random numbers are drawn for the global batch, so any number of devices gives the same
run. Loops whose length depends on the data go through `map_devices` instead, so that each device loops on its own.
"""

import functools
import importlib.util
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scoreflow.runs.errors import UserError

_AXIS = "data"
_SILENT = 30  # seconds after which a process that gives no sign of life ends the others
_CHOSEN = 24  # bytes for each example of a batch, by which it is chosen or drawn
_FIRST_PORT = 61_440  # of those that a coordinator may use


def initialize() -> None:
    """Joins the other processes of the job, where there are any; call before anything else touches a device.

    Steps of SLURM, indexed Jobs of Kubernetes, Open MPI and TPU pods are recognized by their environment, and
    `jax.distributed` finds the rest by itself. Otherwise start the same command in every process with
    SCOREFLOW_COORDINATOR=host:port, SCOREFLOW_PROCESSES=n and SCOREFLOW_PROCESS_ID=0 ... n - 1 set.

    Raises:
      UserError: if only some of the three variables are set, or one is not a number.
    """
    names = ("SCOREFLOW_COORDINATOR", "SCOREFLOW_PROCESSES", "SCOREFLOW_PROCESS_ID")
    values = [os.environ.get(name, "") for name in names]
    if not any(values):
        if (job := _open_mpi_5(os.environ)) is not None:
            _join(*job)
        elif _in_a_job():
            jax.distributed.initialize(heartbeat_timeout_seconds=_SILENT)
        return
    if not all(values):
        raise UserError(f"{', '.join(n for n, v in zip(names, values) if not v)} must be set too: {names} go together")
    coordinator, count, index = values
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
        raise UserError(f"SCOREFLOW_PROCESS_ID={index} must be a number below SCOREFLOW_PROCESSES={count}")
    _join(coordinator, int(count), int(index))


def _join(coordinator: str, count: int, index: int) -> None:
    jax.distributed.initialize(coordinator, count, index, heartbeat_timeout_seconds=_SILENT)


def _open_mpi_5(environ: Mapping[str, str]) -> tuple[str, int, int] | None:
    """Coordinator, number of processes and index where `mpirun` of Open MPI 5 has started several; else None.

    JAX knows the variables of version 4. In version 5 the name of the job, `prterun-<host>-<process>@<number>`, has the
    machine and the process of `mpirun`, near which the first of the processes runs.
    """
    job = re.fullmatch(r"[a-z]+-(.+)-(\d+)@\d+", environ.get("PMIX_NAMESPACE", ""))
    count, index = environ.get("OMPI_COMM_WORLD_SIZE", ""), environ.get("OMPI_COMM_WORLD_RANK", "")
    if (
        job is None
        or "OMPI_MCA_orte_hnp_uri" in environ
        or not (count.isdigit() and index.isdigit() and int(count) > 1)
    ):
        return None
    host = "127.0.0.1" if environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == count else job[1]
    return f"{host}:{_FIRST_PORT + int(job[2]) % (2**16 - _FIRST_PORT)}", int(count), int(index)


def _in_a_job() -> bool:
    """Whether a scheduler has started this process as one of several, or it runs on a TPU machine."""
    several = {  # variable that counts processes -> one that is set only in a process that was started as one of them
        "SLURM_NTASKS": "SLURM_STEP_NODELIST",
        "OMPI_COMM_WORLD_SIZE": "OMPI_MCA_orte_hnp_uri",
    }
    if any(int(os.environ.get(count, "1")) > 1 and mark in os.environ for count, mark in several.items()):
        return True
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys():
        return True
    tpu = any(Path(device).exists() for device in ("/dev/accel0", "/dev/vfio/0"))
    return tpu and importlib.util.find_spec("libtpu") is not None


def is_main() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def processes() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return jax.process_index(), jax.process_count()


def from_first(array: np.ndarray) -> np.ndarray:
    """The first process's array, in every process; the others give one of the same shape."""
    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def device_count() -> int:
    """Devices over all processes."""
    return jax.device_count()


def describe() -> str:
    """The devices in words, e.g. '4 x cpu in 1 process'."""
    kind, processes = jax.devices()[0].device_kind, jax.process_count()
    return f"{jax.device_count()} x {kind} in {processes} process{'es' if processes > 1 else ''}"


def mesh() -> Mesh:
    """All devices of all processes on one axis."""
    return Mesh(np.array(jax.devices()), (_AXIS,))


def _sharding(spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(mesh(), spec)


def replicated() -> NamedSharding:
    """The sharding under which every device holds the whole array."""
    return _sharding(PartitionSpec())


def split(axis: int = 0) -> NamedSharding:
    """The sharding under which `axis` is split over the devices."""
    return _sharding(PartitionSpec(*[None] * axis, _AXIS))


_SPLIT_FROM = 2**12  # numbers; fewer are not worth the messages


def layout(tree: Any, *, divided: bool) -> Any:
    """The sharding of every leaf of a tree of shapes, such as a training state.

    Args:
      tree: of arrays or `jax.ShapeDtypeStruct`.
      divided: whether a leaf is split over the devices, along its longest axis that they can share evenly, so that each
        stores one slice of it (FSDP: XLA gathers it where it is used, and reduces gradients to slices). Otherwise, and
        where there is no such axis or the leaf is small, every device stores all of it.
    """

    def of(leaf):
        axes = [i for i, size in enumerate(leaf.shape) if size % jax.device_count() == 0]
        if not divided or not axes or leaf.size < _SPLIT_FROM:
            return replicated()
        return split(max(axes, key=lambda i: leaf.shape[i]))

    return jax.tree.map(of, tree)


def place(tree: Any, shardings: Any) -> Any:
    """Moves a tree of device arrays to other shardings of the same devices."""

    def move(leaf, sharding):
        if leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
            return leaf
        return jax.jit(lambda leaf: leaf, out_shardings=sharding)(leaf)

    return jax.tree.map(move, tree, shardings)


def check_divides(size: int, name: str) -> None:
    """Refuses a batch that the devices cannot share evenly.

    Raises:
      UserError: naming the argument, its value and the number of devices.
    """
    if size % jax.device_count():
        raise UserError(f"{name} = {size} must be a multiple of the {jax.device_count()} devices")


def memory() -> int | None:
    """Bytes of a device, or of the machine where its processors are the devices; None where nothing says so."""
    if limit := (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit"):
        return int(limit)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if jax.default_backend() == "cpu" else None
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return None


def check_memory(size: int, what: str, advice: str) -> None:
    """Refuses what no device could hold, before anything is allocated: XLA would end the process without a word.

    Args:
      size: bytes on each device.
      what: needs them, for the message.
      advice: what to do.

    Raises:
      UserError: where a device has fewer.
    """
    if (limit := memory()) is not None and size > limit:
        raise UserError(f"{what} needs {size / 2**30:,.0f} GiB, and there are {limit / 2**30:,.1f} GiB: {advice}")


def check_batch(size: int, shape: tuple[int, ...], name: str, number: int = 4) -> None:
    """Refuses a batch whose numbers alone the devices could not hold.

    Args:
      size: examples.
      shape: of each.
      name: of the argument, for the message.
      number: bytes of a number.

    Raises:
      UserError: naming the argument and its value.
    """
    each = number * math.prod(shape) + _CHOSEN
    check_memory(size // jax.device_count() * each, f"{name} = {size}", "choose a smaller one")


def rounded_up(count: int) -> int:
    """The least number from `count` on that the devices can share evenly."""
    return -(-count // jax.device_count()) * jax.device_count()


def replicate(tree: Any) -> Any:
    """Puts a tree of host arrays, the same in every process, on every device."""
    return jax.tree.map(lambda leaf: _put(leaf, replicated()), tree)


def shard(tree: Any, axis: int = 0) -> Any:
    """Splits a tree of host arrays, the same in every process, along `axis` over the devices."""
    return jax.tree.map(lambda leaf: _put(leaf, split(axis)), tree)


def shard_rows(make: Callable[[slice], Any], size: int, axis: int = 0) -> Any:
    """`shard` of a tree whose leaves have `size` along the axis, of which every process makes its own rows alone.

    Args:
      make: rows of `size` -> the tree's leaves with these rows, as host arrays.
      size: length of the whole axis.
      axis: that is split.
    """
    if jax.process_count() == 1:
        return shard(make(slice(None)), axis)
    mine = [index[0] for index in split().addressable_devices_indices_map((size,)).values() if index is not None]
    spans = sorted({rows.indices(size)[:2] for rows in mine})
    leaves, structure = zip(*(jax.tree.flatten(make(slice(*span))) for span in spans))

    def whole(i: int) -> jax.Array:
        parts = {span: leaf[i] for span, leaf in zip(spans, leaves)}
        shape = list(leaves[0][i].shape)
        shape[axis] = size
        made = lambda index: parts[index[axis].indices(size)[:2]]
        return jax.make_array_from_callback(tuple(shape), split(axis), made)

    return jax.tree.unflatten(structure[0], [whole(i) for i in range(len(leaves[0]))])


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(np.asarray(jax.random.key_data(leaf)), sharding))
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


def gather(tree: Any) -> Any:
    """Brings a tree of device arrays to the host whole, as numpy arrays, in every process."""

    def fetch(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)


def agree(flag: bool) -> bool:
    """Whether it holds in every process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.all(multihost_utils.process_allgather(np.asarray(flag))))


def total(tree: Any) -> Any:
    """Sums host arrays of float64 or int64, and numbers, over the processes."""
    if jax.process_count() == 1:
        return tree

    def add(leaf):
        leaf = np.asarray(leaf)
        words = np.frombuffer(leaf.tobytes(), np.uint32)  # devices would round 64 bits to 32
        gathered = np.ascontiguousarray(multihost_utils.process_allgather(words))
        return np.frombuffer(gathered.tobytes(), leaf.dtype).reshape(-1, *leaf.shape).sum(0)

    return jax.tree.map(add, tree)


def share(count: int) -> np.ndarray:
    """Which of `count` items this process works on, [count] bool; every item belongs to exactly one process."""
    return np.arange(count) % jax.process_count() == jax.process_index()


def barrier(name: str) -> None:
    """Waits until every process has called it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@functools.cache
def _own_code() -> dict[str, str]:
    """On a CPU, XLA's own code instead of the library to which it hands convolutions and element-wise chains.

    The networks of this package run up to 1.7 times as fast with it (docs/performance.md). An XLA without this option
    runs without it.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=options)(0.0)
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def jit(fn: Callable, *, once: bool = False, **options) -> Callable:
    """`jax.jit` with the compiler options that are fast on the present devices; for programs that run a network.

    Args:
      fn: the function.
      once: whether it is run a single time, so that on a CPU a short compilation matters more than fast code.
      options: of `jax.jit`.
    """
    hurry = {"xla_backend_optimization_level": 0} if once and jax.default_backend() == "cpu" else {}
    return jax.jit(fn, compiler_options=_own_code() | hurry, **options)


class Memory(NamedTuple):
    """Bytes on each device: of a program's arguments, and of the memory that it needs in addition while it runs."""

    arguments: int
    work: int

    def __str__(self) -> str:
        return f"{self.arguments / 2**20:,.1f} MiB held, {self.work / 2**20:,.1f} MiB more while a step runs"


def compile_for(fn: Any, *args) -> tuple[Callable, Memory]:
    """Compiles a function that `jit` returned for arguments like these, and counts its memory."""
    compiled = fn.lower(*args).compile()
    analysis = compiled.memory_analysis()
    work = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return compiled, Memory(analysis.argument_size_in_bytes, work)


def operations(fn: Any, *args) -> float | None:
    """Operations of a function that `jit` returned for arguments like these, in XLA's count; nothing is run.

    Of all devices together, with one pass of every loop; None where the platform does not count.
    """
    analysis = fn.lower(*args).cost_analysis() or {}
    return analysis.get("flops")


def peak_memory() -> int | None:
    """The most bytes that were in use on a device of this process; None where the platform does not count them."""
    counts = [device.memory_stats() for device in jax.local_devices()]
    return max(stats["peak_bytes_in_use"] for stats in counts) if all(counts) else None


def map_devices(fn: Callable, *, broadcast: tuple[int, ...] = (), donate: tuple[int, ...] = ()) -> Callable:
    """fn run by each device on its share of the leading axis: `jax.pmap` written as `jit(shard_map(...))`.

    Args:
      fn: takes and returns trees of arrays with leading axis B, of which it is given B / devices rows.
      broadcast: positions of arguments that every device gets whole.
      donate: positions of arguments whose memory may be reused.

    Returns:
      The compiled function. Each device runs its own loops: no device waits for another inside a `while_loop`.
    """

    def call(*args):
        specs = tuple(PartitionSpec() if i in broadcast else PartitionSpec(_AXIS) for i in range(len(args)))
        mapped = jax.shard_map(fn, mesh=mesh(), in_specs=specs, out_specs=PartitionSpec(_AXIS), check_vma=False)
        return mapped(*args)

    return jit(call, donate_argnums=donate)
