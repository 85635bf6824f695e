"""Trains a classifier on every device there is, and keeps what people use later.

On this machine's GPUs, or on its CPU where there are none:
  python -m mnist_dist.train --model_dir=runs/mnist
Stopped or killed, the same command goes on from the newest checkpoint.
Several replicas on a CPU, as the tests do:
  python -m mnist_dist.train --model_dir=runs/two --logical_cpus=2
Another data set, a preset, and a look without training:
  python -m mnist_dist.train --model_dir=runs/fashion --data_dir=FASHION_MNIST
  python -m mnist_dist.train --model_dir=runs/mlp --flagfile=launch/recipes/seed_mlp.flags
  python -m mnist_dist.train --model_dir=runs/mnist --dry_run
Several workers: `launch` starts them, or Slurm, or Kubernetes, or a person on each host:
  python -m mnist_dist.train --model_dir=runs/mnist --worker_hosts=A:2222,B:2222 --task_index=0
  python -m mnist_dist.train --model_dir=runs/mnist --worker_hosts=A:2222,B:2222 --task_index=1
"""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from absl import flags

from mnist_dist.cli import program, train_flags
from mnist_dist.cli.standard_streams import ignore_write_errors
from mnist_dist.cli.train_flags import FLAGS, pick
from mnist_dist.cluster.membership import EVALUATOR_SINCE, Cluster, find_cluster
from mnist_dist.cluster.stop_request import StopRequest
from mnist_dist.errors import EXIT_STOPPED


def main(argv: Sequence[str]) -> int:
    """Finds this worker's place in the cluster, and trains; returns the exit code."""
    del argv
    train_flags.check_flags()
    cluster = find_cluster(**pick("worker_hosts task_index"))
    if cluster.is_evaluator or cluster.num_workers > 1:
        print(cluster.describe(), flush=True)
    if cluster.is_evaluator:
        become_evaluator()
    with StopRequest() as stop:  # before the imports start threads
        # TensorFlow takes seconds to import: not before the flags are known to be good.
        with program.quiet_imports():
            from mnist_dist.device.strategy import names_lost_peers
        with names_lost_peers(cluster):
            return train(cluster, stop)


def become_evaluator() -> NoReturn:
    """Goes on as `evaluate --watch` on this run, in this process."""
    given = [
        f"--{name}={value}"
        for name, value in pick("model_dir data_dir num_gpus").items()
        if value is not None
    ]
    command = [sys.executable, "-m", "mnist_dist.evaluate", "--watch", *given]
    os.environ[EVALUATOR_SINCE] = str(time.time())
    os.execv(sys.executable, command)


def train(cluster: Cluster, stop: StopRequest) -> int:
    """Runs the whole job; returns the exit code."""
    with program.quiet_imports():
        from mnist_dist import data
        from mnist_dist.artifacts import saved_model
        from mnist_dist.device import steps, xla
        from mnist_dist.device.strategy import create_strategy, leave_together
        from mnist_dist.device.train_state import TrainState
        from mnist_dist.modeling import networks, optimizers
        from mnist_dist.run.config import load_run_config, save_config
        from mnist_dist.run.directory import check_directory, export_dir
        from mnist_dist.training import description
        from mnist_dist.training.host_loop import TrainingRun
        from mnist_dist.training.start import claim_run

    # 1. What to train on: the data, and the devices of all workers.
    dataset = data.load_dataset(FLAGS.data_dir, **pick("validation_examples"))
    plan = train_flags.run_plan(len(dataset.train.labels))
    strategy = create_strategy(
        FLAGS.distribution_strategy,
        cluster=cluster,
        greeting=train_flags.shared() | {"data_checksum": dataset.checksum},
        is_stopping=stop.is_made,
        **pick("cluster_timeout peer_timeout num_gpus logical_cpus all_reduce_alg"),
        **pick("deterministic"),
    )
    stop.listen()  # only now: with several workers TensorFlow has taken SIGTERM

    # 2. What to train: the model and every variable, once on each replica.
    update_rule = optimizers.create_update_rule(
        FLAGS.optimizer, **pick("momentum nesterov weight_decay")
    )
    schedule = optimizers.create_schedule(
        FLAGS.lr_schedule,
        total_steps=plan.total_steps,
        **pick("learning_rate warmup_steps"),
    )
    with strategy.scope():
        model = networks.create_model(
            FLAGS.model,
            image_shape=dataset.image_shape,
            num_classes=dataset.num_classes,
            **pick("seed dropout dtype"),
        )
        networks.freeze_layers(model, FLAGS.freeze)
        state = TrainState(
            model,
            slot_names=update_rule.slots,
            with_ema=FLAGS.ema_decay > 0,
            with_loss_scale=FLAGS.dtype == "float16",
        )

    # 3. How: the functions that keep a device busy, and the host beside them.
    use_xla = xla.should_compile(
        FLAGS.enable_xla, model, strategy, image_shape=dataset.image_shape
    )
    run = TrainingRun(
        plan=plan,
        cluster=cluster,
        stop=stop,
        dataset=dataset,
        strategy=strategy,
        state=state,
        schedule=schedule,
        train_loop=steps.create_train_loop(
            strategy,
            state,
            update_rule=update_rule,
            schedule=schedule,
            with_augmentation=FLAGS.augment,
            use_xla=use_xla,
            **pick("global_batch_size seed label_smoothing clip_global_norm ema_decay"),
        ),
        evaluate_loop=steps.create_evaluate_loop(strategy, state, use_xla=use_xla),
        show_progress=FLAGS.progress,
        **pick("model_dir global_batch_size seed data_on_device"),
    )

    # 4. Where it left off, if it had begun. The chief alone reads and writes the run.
    settings = train_flags.settings() | {"data_checksum": dataset.checksum}
    start, lock = None, None
    if cluster.is_chief:
        print(description.describe_run(run, use_xla=use_xla), flush=True)
        if FLAGS.export and FLAGS.export_dir:
            check_directory(FLAGS.export_dir, flag="--export_dir")
        start, lock = claim_run(
            model=model,
            specs=run.specs(),
            settings=settings,
            **pick("model_dir restore overwrite override_config init_from dry_run"),
        )
    if FLAGS.dry_run:
        leave_together(strategy, code=0)
        return 0
    run.start(
        start,
        texts={
            "settings": description.settings_table(train_flags.values()),
            "model": description.model_table(state),
        },
    )
    if cluster.is_chief:
        save_config(
            FLAGS.model_dir,
            settings=settings,
            flags=train_flags.values(),
            resolved=description.resolved(run, use_xla=use_xla),
        )

    # 5. Many steps in one call on the device; between two calls, what is due.
    with contextlib.closing(run):
        while True:
            if run.is_due(plan.eval_interval) and not run.is_evaluated():
                run.evaluate()
            if run.is_due(plan.checkpoint_interval):
                run.save()
            if run.is_done() or run.is_stopping():
                break
            run.train_until_next_event()
            if run.is_due(plan.summary_interval):
                run.summarize()
        run.save()
    was_stopped = run.is_stopping()

    # 6. What is left behind.
    if was_stopped:
        print(description.describe_stop(run, stop.signal_name, restore=FLAGS.restore))
    elif cluster.is_chief:
        export_path = None
        if FLAGS.export:
            export_path = saved_model.export_saved_model(
                state,
                FLAGS.export_dir or export_dir(FLAGS.model_dir),
                config=load_run_config(FLAGS.model_dir),
                uses_ema=FLAGS.ema_decay > 0,
                evaluation=dataset.evaluation,
            ).path
        print(description.describe_end(run, export_path))
    if lock:
        lock.close()
    code = EXIT_STOPPED if was_stopped else 0
    sys.stdout.flush()  # before what may end the process at once
    leave_together(strategy, code=code)
    return code


if __name__ == "__main__":
    flags.adopt_module_key_flags(train_flags)  # for --help to list them
    ignore_write_errors("stdout")
    program.run(main, leaves_at_once=True)
