"""The configuration's schema: one dataclass per group of ``conf/``, a docstring under every field.

There is no logic here. What makes a configuration right is checked, all of it at once, by
:func:`launcher.submit.validate.problems`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TEXT, COMMAND, NODELIST = "text", "command", "nodelist"
"""How the value of a setting is written (``syntax`` of a field's metadata), where its type does not show it: as text,
as a shell would split it into words, or as SLURM writes lists of nodes. See :mod:`launcher.config.overrides`."""


@dataclass(kw_only=True)
class LayoutConfig:
    """How many nodes there are, and which of them train and which infer."""

    nodes: int = 2
    """Nodes of the run: trainer nodes first, then ``inference_nodes``."""

    inference_nodes: int = 1
    """The last N nodes run engines. 0 is local mode: every node trains and runs engines."""

    spares: int = 0
    """Further nodes of the allocation, after the others, that idle until one of them takes a lost node's place."""

    gpus_per_node: int = 8
    """GPUs of each node. With ``device=cpu``: slots, which only count processes."""

    device: str = "cuda"
    """``cuda`` or ``cpu``: where trainers and engines compute."""

    colocate: str = "split"
    """Local mode only. ``split``: the last ``colocate_inference_gpus`` of a node serve; ``share``: all GPUs do both."""

    colocate_inference_gpus: int | None = None
    """Local mode with ``colocate=split``: GPUs of each node that serve; half of them if null."""

    hostnames: list[str] | None = field(default=None, metadata={"syntax": NODELIST})
    """Hostnames to plan with, in nodelist order: ``rack[0-1]n[01-03]``, as SLURM writes it, or a list. Used by ``plan``
    only; invented when null."""


@dataclass(kw_only=True)
class ModelConfig:
    """The model that is trained and served."""

    path: str | None = None
    """Directory of a Hugging Face causal language model and its tokenizer. Null: a tiny random one, made in the run."""

    dtype: str = "bfloat16"
    """Type of the weights in the engine and on the wire: ``bfloat16``, ``float16`` or ``float32``."""

    max_length: int = 64
    """Longest sequence, prompt and answer together, in tokens (vLLM's ``--max-model-len``)."""

    seed: int = 0
    """Seed of the weights when ``path`` is null."""


@dataclass(kw_only=True)
class TrainerConfig:
    """The trainer's side. ``command`` runs any torchrun program; the other fields are the reference trainer's."""

    command: list[str] | None = field(default=None, metadata={"syntax": COMMAND})
    """Program and arguments of one trainer rank: a list, or text that is split as a shell would split it. Null:
    ``python -m launcher.trainers.grpo``, the reference trainer."""

    workers_per_node: int | None = None
    """Trainer ranks per node; one per trainer GPU if null."""

    env: dict[str, str] = field(default_factory=dict)
    """Further environment of every trainer rank."""

    steps: int = 60
    """Optimizer steps."""

    lr: float = 1e-3
    """Learning rate of AdamW."""

    prompts_per_step: int = 32
    """Distinct prompts sampled per step, over all ranks."""

    samples_per_prompt: int = 8
    """Completions per prompt: one GRPO group."""

    max_new_tokens: int = 4
    """Longest completion, in tokens."""

    temperature: float = 1.0
    """Sampling temperature of the rollouts."""

    seed: int = 0
    """Seed of the data and of the sampling."""

    task: str = "addition"
    """Verifiable task of the reference trainer: ``addition``, or ``MODULE:CLASS`` of your own."""

    options: dict[str, Any] = field(default_factory=dict)
    """Further options by name for a trainer of your own; readable through ``launcher.config.load_run_config``."""


@dataclass(kw_only=True)
class InferenceConfig:
    """The engines. Field names that vLLM has too mean what they mean there."""

    tensor_parallel_size: int = 1
    """GPUs (with ``device=cpu``: processes) that share each layer."""

    pipeline_parallel_size: int = 1
    """Groups of layers in a row."""

    replicas_per_node: int | None = None
    """Engines per inference node; as many as the GPUs hold if null. 1 when a replica spans nodes."""

    base_port: int = 9000
    """HTTP port of a node's first engine; the next ones count up from it."""

    strict_ports: bool = False
    """Fail when a planned port is taken, instead of serving on a free one. Either way the real URL is published."""

    ready_timeout_s: float = 600.0
    """Longest wait for an engine's ``/health``, from the start of its process."""

    drain_timeout_s: float = 5.0
    """After the trainer has finished: longest wait for running requests before an engine is stopped."""

    min_replicas: int = 1
    """Replicas without which training cannot go on. Down to this number those that cannot be restarted are left out."""

    max_num_seqs: int | None = None
    """Sequences decoded together (vLLM's ``--max-num-seqs``); vLLM's default if null."""

    gpu_memory_utilization: float | None = None
    """Share of a GPU's memory (vLLM's ``--gpu-memory-utilization``); vLLM's default if null."""

    enforce_eager: bool = False
    """Neither CUDA graphs nor torch.compile (vLLM's ``--enforce-eager``)."""

    cpu_kvcache_space_gb: int = 1
    """KV cache of one engine with ``device=cpu``, in GiB (``VLLM_CPU_KVCACHE_SPACE``)."""

    args: list[str] = field(default_factory=list, metadata={"syntax": COMMAND})
    """Further arguments of vLLM's server, as on its command line: a list, or text that is split as a shell would."""

    env: dict[str, str] = field(default_factory=dict)
    """Further environment of every engine."""


@dataclass(kw_only=True)
class WeightBridgeConfig:
    """The path of the weights from the trainer into the engines."""

    transport: str = "auto"
    """How weights travel: ``auto`` picks for every pair of a trainer rank and an engine worker. Within one host that is
    ``shm`` on CPUs, ``peer`` between two GPUs and ``ipc`` on one; between hosts ``nccl`` on GPUs and ``gloo`` on CPUs.
    Any of these names, or ``filesystem``: that one for all pairs."""

    relay: str = "auto"
    """Whether replicas pass weights on: ``auto`` where they are on more nodes than the trainer, or share a node, and
    need the same; ``off``: every replica gets all from the trainer."""

    directory: str | None = None
    """Directory that trainers and engines share, through which ``filesystem`` goes; null: in the run directory."""

    mode: str = "shadow"
    """Where engines receive a version: ``shadow`` (a copy on the device), ``host_shadow`` (a copy in host memory), or
    ``inplace``: no copy, but no decoding either from the first byte to the last."""

    update: str = "full"
    """How much of a version travels: ``full``, or ``delta``: what has changed since the version that an engine has.
    Each trainer rank then keeps a copy of its shards. Pays where the wire is slower than a comparison."""

    timeout_s: float = 300.0
    """Deadline of each step of an update, and of joining."""

    rank_timeout_s: float = 120.0
    """How long a trainer rank waits for the others to make the same call of the bridge. Those that are missing are
    named in the log after 5 s, and by an error on every rank that came once the time is over."""

    verify: bool = True
    """Compare a digest of the weights sent with one of those that arrived before any engine takes them."""

    reset_prefix_cache: bool = True
    """Drop the engines' prefix cache at every new version."""


@dataclass(kw_only=True)
class PreflightConfig:
    """The look at every node, and at what lies between them, before anything is started."""

    action: str = "fail"
    """What a bad node leads to: ``fail`` ends the run, ``warn`` only reports it, ``off`` does not look."""

    skip: list[str] = field(default_factory=list)
    """Checks to leave out, by name; see ``launcher.preflight.context``."""

    timeout_s: float = 20.0
    """Longest time that a check may take; one that hangs for longer has failed."""

    max_gpu_memory_used: float = 0.05
    """Share of a GPU's memory that may be in use before the start."""

    min_shm_gb: float = 0.25
    """Free room in ``/dev/shm``, in GiB."""

    min_memlock_gb: float = 1.0
    """Memory that may be locked, in GiB; checked only where GPUs use InfiniBand."""

    min_nofile: int = 1024
    """Open files per process."""

    min_disk_gb: float = 1.0
    """Free room in the run directory and on the node's own disk, in GiB."""

    max_clock_skew_s: float = 2.0
    """Largest difference to node 0's clock."""

    bad_node_ttl_s: float = 86400.0
    """How long later runs leave out a node that was bad; 0: neither remember nor leave out."""

    bad_node_dir: str | None = None
    """Directory that remembers bad nodes; ``launcher`` in the user's cache directory if null."""


@dataclass(kw_only=True)
class CheckpointConfig:
    """What the reference trainer, or one that uses ``launcher.checkpoint``, saves so that it can go on later."""

    every_steps: int = 20
    """Steps from one checkpoint to the next. 0: only when the run is to stop."""

    keep: int = 2
    """Complete checkpoints that are kept."""

    dir: str | None = None
    """Where they lie, in a folder with the run's name, on a filesystem that all trainers see. Null: ``checkpoint`` of
    the run directory."""

    stop_timeout_s: float = 60.0
    """Longest wait for the trainer to end after a request to stop with a checkpoint (USR2, preemption)."""

    write_timeout_s: float = 300.0
    """Longest further wait while a checkpoint is being written."""


@dataclass(kw_only=True)
class SweepConfig:
    """A sweep: ``-m`` with several values for some settings. The same command again starts only what is missing."""

    name: str | None = None
    """Directory of the sweep's ledger, below ``OUTPUT_DIR/sweeps``. Null: made from the command's overrides."""

    zip: list[str] = field(default_factory=list)
    """Settings whose values are paired, first with first, not combined: ``sweep.zip=[trainer.lr,trainer.seed]``."""

    array: bool = False
    """On SLURM: runs of the same ``layout`` and ``cluster`` as one job array, one request to the controller."""

    parallel: int | None = None
    """Runs at a time. Null: on SLURM as many as it starts, on this machine one after another."""

    metric: str = "reward.max"
    """What runs are compared by: a number of the ``step`` events, and ``max``, ``min``, ``last`` or ``mean`` of it."""


@dataclass(kw_only=True)
class CompileCacheConfig:
    """Caches of compilers (Triton, Inductor, vLLM, CUDA): on each node's own disk, kept between runs."""

    enabled: bool = True
    """Keep them on the nodes' disks and, in ``output_dir``, from run to run. Else every tool does as it likes."""

    local: str | None = None
    """Directory on the node's own disk; the system's one for temporary files if null."""

    max_gb: float = 4.0
    """Largest size of what one role keeps between runs, in GiB."""


@dataclass(kw_only=True)
class RestartConfig:
    """What is restarted inside an allocation after it ended or hung, how soon, and how often."""

    max_engine_restarts: int = 3
    """Restarts of one replica within ``count_window_s``; a replica that fails once more is left out. 0: never. As long
    as no engine of the run has ever been ready, the second failure of a replica is its last."""

    engine_backoff_s: float = 1.0
    """Pause before a replica's first restart; each further one within ``count_window_s`` doubles it."""

    max_engine_backoff_s: float = 60.0
    """Longest such pause."""

    engine_health_timeout_s: float = 30.0
    """An engine that was ready and whose ``/health`` has not answered for so long is killed and restarted."""

    max_trainer_restarts: int = 3
    """Restarts of the trainers, all ranks together, within ``count_window_s``; one more failure fails the run.
    0: never."""

    startup_failure_window_s: float = 60.0
    """A trainer that exits with an error (not by a signal) sooner than this, before its first step or version, fails
    the run: a restart would fail in the same way."""

    step_timeout_s: float | None = None
    """From the first step on: trainers that finish no step for so long are killed and restarted. Null: never, because
    only you know how long a step may take."""

    stopped_process_timeout_s: float = 10.0
    """A process that has been stopped (SIGSTOP) for so long is killed, and then treated like one that ended."""

    max_preemptions: int = 100
    """Preemptions after which a job is not queued again; ``launcher resume`` counts from zero."""

    max_timeouts: int = 100
    """Time limits reached, after which a job is not queued again."""

    max_failures: int = 3
    """Failures after which a job is not queued again. Counted are those that only other nodes can cure: lost nodes that
    no spare replaced, and attempts that ended without a report. 0: never queued again after one."""

    count_window_s: float = 3600.0
    """Restarts longer ago than this are not counted any more."""


@dataclass(kw_only=True)
class ClusterConfig:
    """Where the nodes come from; see the subclasses."""

    kind: str = "local"
    """``local`` or ``slurm``."""

    wait: bool = True
    """Follow the job to its end and take over its outcome as exit code. ``local`` always does."""

    setup: list[str] = field(default_factory=list)
    """Shell commands run once on the batch host before the nodes start (SLURM only)."""

    env: dict[str, str] = field(default_factory=dict)
    """Further environment of every process on every node."""


@dataclass(kw_only=True)
class LocalClusterConfig(ClusterConfig):
    """Every node is a process of this machine."""


@dataclass(kw_only=True)
class NodesConfig:
    """The request for one role's nodes where it differs from the other's. Null: the value of ``cluster``."""

    partition: str | None = None
    """Partition of these nodes (``--partition``)."""

    account: str | None = None
    """Account that is charged for them (``--account``)."""

    qos: str | None = None
    """Quality of service (``--qos``)."""

    constraint: str | None = None
    """Features that they must have (``--constraint``)."""

    exclude: str | None = None
    """Nodes never to use (``--exclude``)."""

    nodelist: str | None = None
    """Nodes to use (``--nodelist``)."""

    reservation: str | None = None
    """Reservation to draw from (``--reservation``)."""

    mem: str | None = None
    """Memory per node (``--mem``)."""

    cpus_per_task: int | None = None
    """CPU cores of a node for the job (``--cpus-per-task``)."""

    gpu_type: str | None = None
    """GPU type (``gpu:TYPE:N``)."""


@dataclass(kw_only=True)
class SlurmClusterConfig(ClusterConfig):
    """A SLURM cluster, reached with ``sbatch`` from this machine. Null: what the login shell exports as a default for
    ``sbatch`` (``SBATCH_PARTITION``, ``SBATCH_ACCOUNT`` ...), or else SLURM's choice."""

    kind: str = "slurm"
    wait: bool = False

    partition: str | None = None
    """Partition to queue in (``--partition``)."""

    account: str | None = None
    """Account that is charged (``--account``)."""

    qos: str | None = None
    """Quality of service (``--qos``)."""

    time: str | None = None
    """Wall time after which SLURM ends the job: minutes, ``hh:mm:ss``, ``days-hh:mm:ss``, ``UNLIMITED``, or
    ``partition`` for the partition's own limit (``--time``). Null: ``SBATCH_TIMELIMIT``, or else four hours."""

    constraint: str | None = None
    """Node features required (``--constraint``)."""

    exclude: str | None = None
    """Nodes never to use (``--exclude``)."""

    nodelist: str | None = None
    """Nodes to use (``--nodelist``)."""

    reservation: str | None = None
    """Reservation to draw from (``--reservation``)."""

    mem: str | None = "0"
    """Memory per node (``--mem``); ``0`` is all of it."""

    cpus_per_task: int | None = None
    """CPUs of a node for the job (``--cpus-per-task``; one task per node). Null: the share of the node's CPUs that
    matches the share of its GPUs; without GPUs four for each process."""

    gpu_request: str = "gpus-per-node"
    """How this site requests GPUs: ``gpus-per-node``, ``gres`` (``--gres=gpu:N``) or ``none``; with ``cpu`` never."""

    gpu_type: str | None = None
    """GPU type in that request (``gpu:TYPE:N``)."""

    exclusive: bool = False
    """Whole nodes (``--exclusive``)."""

    requeue: bool = True
    """The job is queued again after a time limit, a preemption or the loss of its first node, and the run resumes
    (``--requeue``)."""

    signal_s: int = 120
    """Seconds before the time limit at which SLURM sends USR2 to every node (``--signal``)."""

    template: str | None = None
    """Template of the job script: a shipped one by name, or a Jinja file of your own; the one that fits if null."""

    trainer: NodesConfig = field(default_factory=NodesConfig)
    """Where the nodes that train differ from those that infer; any value makes the job a heterogeneous one."""

    inference: NodesConfig = field(default_factory=NodesConfig)
    """Likewise for the nodes that infer."""

    container: str | None = None
    """Image that every node's part runs in; a path or what the runtime takes for one. It must hold the launcher."""

    container_runtime: str = "pyxis"
    """What starts the image: ``pyxis`` (``srun --container-image``, with enroot) or ``apptainer`` (``exec``)."""

    container_mounts: str | None = None
    """Further mounts, ``FROM:TO,...``. Output, code and model are always mounted where they are."""

    sbatch: dict[str, Any] = field(default_factory=dict, metadata={"syntax": TEXT})
    """Further ``#SBATCH`` options by name, without the dashes; ``true`` for one without a value."""

    srun_args: list[str] = field(default_factory=list, metadata={"syntax": COMMAND})
    """Further arguments of the one ``srun``."""

    python: str | None = None
    """Python interpreter on the nodes, or in the container; if null the one that submits, or ``python3``."""


@dataclass(kw_only=True)
class Config:
    """One run."""

    name: str = "rl"
    """Name of the run, of its directory and of the job."""

    output_dir: str = "runs"
    """Where run directories are made; on SLURM a filesystem that every node shares."""

    snapshot: bool = True
    """Run the code as it is at submission, from a copy of the git repository one stands in. False: as it is then."""

    secrets: list[str] = field(default_factory=list)
    """Further names (or patterns) of variables that hold secrets, beside ``*_TOKEN``, ``*_KEY``, ``*SECRET*`` and
    ``*PASSWORD*``. Those pass from this environment to the processes of the run, and are written nowhere."""

    start_timeout_s: float = 300.0
    """Longest wait for all nodes of the allocation to report."""

    lease_timeout_s: float = 10.0
    """A node that is silent for longer is lost; one that cannot reach node 0 for so long ends its processes."""

    stop_grace_s: float = 5.0
    """Between SIGTERM and SIGKILL when processes are stopped."""

    cluster: ClusterConfig = field(default_factory=LocalClusterConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    bridge: WeightBridgeConfig = field(default_factory=WeightBridgeConfig)
    preflight: PreflightConfig = field(default_factory=PreflightConfig)
    compile_cache: CompileCacheConfig = field(default_factory=CompileCacheConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    restart: RestartConfig = field(default_factory=RestartConfig)
