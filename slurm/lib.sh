# What the batch files share; they source it. `docs/slurm.md` explains the variables that it reads.

hand_on() {
    interrupted=yes
    if [[ ${watched-} ]]; then kill "-$1" "$watched" 2>/dev/null; fi
}
# USR2 is what --signal sends before the end of the job's time; it must not end this shell, whenever it comes.
trap 'warned=yes; hand_on USR2' USR2
trap 'hand_on TERM' TERM

home=${MNIST_DIST_HOME:-$SLURM_SUBMIT_DIR}

# What Slurm had told the job or step that called `sbatch` is still here, unless Slurm has said it anew; `srun` would
# obey it. A step is given all memory of its job where nothing is said.
if [[ ${SLURM_STEP_ID-} ]]; then
    unset ${!SLURM_STEP*} ${!SLURM_PTY_*} ${!SLURM_SRUN_*} ${!SLURM_CPU_BIND*} ${!SLURM_MEM_BIND*} SLURM_DISTRIBUTION
    unset SLURM_HINT SLURM_THREADS_PER_CORE
fi
unset ${!SLURM_MEM_PER_*} ${!SRUN_CPUS_*} MNIST_DIST_NODE_ADDRESSES
unset SLURM_GPUS_PER_TASK SLURM_TRES_PER_TASK # Of this job too: one task that drives all GPUs would get a single one.
if own=$(timeout 20 scontrol --oneliner show job "$SLURM_JOB_ID" 2>/dev/null | grep "^JobId=$SLURM_JOB_ID "); then
    [[ $own == *" ArrayTaskId="* ]] || unset ${!SLURM_ARRAY_*}
    [[ $own == *[/:]gpu* ]] || unset ${!SLURM_GPU*} ${!SLURM_JOB_GPU*} SLURM_CPUS_PER_GPU SLURM_NTASKS_PER_GPU
    [[ $own != *" Restarts=0 "* ]] || unset SLURM_RESTART_COUNT
    [[ $own != *" NtasksPerN:B:S:C=0:"* ]] || unset SLURM_NTASKS_PER_NODE
    if [[ ${SLURM_NTASKS-} && $own =~ " NumTasks="([0-9]+) ]]; then export SLURM_{NTASKS,NPROCS}="${BASH_REMATCH[1]}"; fi
    if [[ ${SLURM_CPUS_PER_TASK-} && $own =~ " CPUs/Task="([0-9]+) ]]; then SLURM_CPUS_PER_TASK=${BASH_REMATCH[1]}; fi
fi
# Asked once for all ranks, which would otherwise ask the controller themselves. A variable holds 128 KiB.
if [[ ${SLURM_TASKS_PER_NODE-1} != 1 ]]; then
    addresses=$(timeout 20 scontrol --oneliner show nodes "$SLURM_JOB_NODELIST" 2>/dev/null |
        sed -nE 's/.*NodeName=(\S+).*NodeAddr=(\S+).*/\1=\2/p')
    if ((${#addresses} < 100000)); then export MNIST_DIST_NODE_ADDRESSES=$addresses; fi
fi
export SLURM_EXPORT_ENV=ALL # Where `--export=NONE` is the rule, tasks would have no PATH, and nothing of what follows.

job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID} # As `scontrol requeue` wants it, for a member of an array too.

if [[ ${MNIST_DIST_MODULES-} ]]; then
    declare -F module >/dev/null || source /etc/profile # A batch shell is not a login shell.
    module load $MNIST_DIST_MODULES || exit
fi
venv=${MNIST_DIST_VENV:-$home/.venv}
if [[ -f $venv/bin/activate ]]; then source "$venv/bin/activate"; fi
if [[ -f $home/setup.cfg ]]; then export PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH}; fi # A checkout.
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
if [[ ${MNIST_DIST_INTERFACE-} ]]; then
    export NCCL_SOCKET_IFNAME=$MNIST_DIST_INTERFACE HOROVOD_GLOO_IFACE=$MNIST_DIST_INTERFACE
fi
# Ranks know one another by it.
export MNIST_DIST_SECRET=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
if [[ ${SLURM_CPUS_PER_TASK-} ]]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi # Not inherited since 22.05.

# How each task starts. Neighbouring ranks share a node. One that dies ends the step, and as all leave together, those
# of which nothing is heard 20 s later are on a node that was lost; without --wait, srun waits for Slurm to notice.
python=(python3)
container_flags=()
if [[ ${MNIST_DIST_CONTAINER-} ]]; then
    mounts=$home:$home,$PWD:$PWD${MNIST_DIST_MOUNTS:+,$MNIST_DIST_MOUNTS}
    case ${MNIST_DIST_CONTAINER_RUNTIME:-apptainer} in
        apptainer)
            gpus=${SLURM_GPUS_ON_NODE:-${SLURM_JOB_GPUS-}} # Not every Slurm tells both.
            python=(apptainer exec ${gpus:+--nv} --bind "$mounts" --pwd "$PWD")
            python+=("$MNIST_DIST_CONTAINER" python3)
            ;;
        pyxis)
            container_flags=(--container-image="$MNIST_DIST_CONTAINER" --container-mounts="$mounts")
            container_flags+=(--container-workdir="$PWD")
            ;;
        *)
            echo "MNIST_DIST_CONTAINER_RUNTIME: received '$MNIST_DIST_CONTAINER_RUNTIME', expected apptainer or pyxis." >&2
            exit 2
            ;;
    esac
    # For `mnist-dist bench`, which runs outside of the container and starts its tasks within.
    export MNIST_DIST_SRUN_FLAGS=${container_flags[*]@Q} MNIST_DIST_TASK_PYTHON=${python[*]@Q}
fi
srun=(srun --mpi=none --distribution=block --kill-on-bad-exit=1 --wait=20 "${container_flags[@]}")

# option_value --name "$@": the last value given to an option, as `--name value` or `--name=value`.
option_value() {
    local name=$1 value=
    shift
    while (($#)); do
        case $1 in
            "$name") value=${2-} ;;
            "$name="*) value=${1#*=} ;;
        esac
        shift
    done
    printf '%s' "$value"
}

# Checks nodes, devices and the folder of the results before anything heavy starts.
preflight() {
    if [[ ${MNIST_DIST_PREFLIGHT-} != off ]]; then
        "${srun[@]}" "${python[@]}" -m mnist_dist.slurm.preflight "$1" || end_job $?
    fi
}

# Runs a command so that these signals reach it; its exit code is left in $status. It must be a program, not a function:
# a shell between would keep the signals.
run_watched() {
    if [[ ${warned-} ]]; then status=140; return; fi # Too late to begin.
    "$@" &
    watched=$!
    status=127
    if [[ ${warned-} ]]; then hand_on USR2; fi # It came before there was anybody to hand it on to.
    while
        interrupted=
        wait "$watched"
        code=$?
        ((code == 127)) || status=$code # 127: the command had ended before the last signal came.
        [[ $interrupted ]]
    do :; done
    watched=
}

# Whether every node of the job can still start a process.
all_nodes_answer() {
    timeout 40 srun --mpi=none --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
        --ntasks-per-node=1 --kill-on-bad-exit=1 true
}

# Whether nobody has cancelled the job, and its time is not over: Slurm then still calls it running.
is_wanted() {
    local state
    for _ in 1 2 3; do # What ends the job may have ended squeue as well.
        if state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T); then
            grep -qx RUNNING <<<"$state" # A site's `squeue` may print more.
            return
        fi
        sleep 1
    done # No answer: no reason to give up.
}

requeue_job() {
    if ((${SLURM_RESTART_COUNT:-0} >= ${MNIST_DIST_MAX_RESTARTS:-100})); then
        echo "Job $job: $1, and it has been started $((SLURM_RESTART_COUNT + 1)) times: not again." >&2
        exit 1
    fi
    echo "Job $job: $1; requeuing." >&2
    scontrol requeue "$job"
    exit
}

# end_job CODE [UNFINISHED]: ends the job as its step has ended; or sends it back into the queue, where it was asked to
# stop or has lost a node.
end_job() {
    local code=$1 unfinished=${2-}
    if is_wanted; then
        if [[ ${warned-} && ($unfinished || $code -gt 128) ]]; then requeue_job "its time has run out"; fi
        if [[ $unfinished ]]; then requeue_job "it was preempted"; fi
        if ((code != 0 && code != 2)) && ! all_nodes_answer; then requeue_job "a node was lost"; fi
    fi
    exit "$code"
}
