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
from collections.abc import Sequence
from typing import NoReturn

from mnist_dist import program, train_flags
from mnist_dist.cluster import Cluster, find_cluster
from mnist_dist.preemption import StopRequest
from mnist_dist.train_flags import FLAGS, pick


def main(argv: Sequence[str]) -> int:
    """Finds out what to be, and is it; returns the exit code."""
    del argv
    train_flags.check_flags()
    cluster = find_cluster(**pick("worker_hosts task_index"))
    if cluster.is_evaluator or cluster.num_workers > 1:
        print(cluster.describe(), flush=True)
    if cluster.is_evaluator:
        become_evaluator()
    stop = StopRequest()  # before the imports start threads
    # TensorFlow takes seconds to import: not before the flags are known to be good.
    with program.quiet_imports():
        from mnist_dist.distribution import names_lost_peers
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
    os.execv(sys.executable, command)


def train(cluster: Cluster, stop: StopRequest) -> int:
    """Runs the whole job; returns the exit code."""
    with program.quiet_imports():
        import keras
        import tensorflow as tf

        from mnist_dist import (
            checkpoints,
            distribution,
            layer_weights,
            optimizers,
            report,
            run_directory,
        )
        from mnist_dist.data import load_dataset
        from mnist_dist.device_data import fits_on_device
        from mnist_dist.models import create_model
        from mnist_dist.saved_model import export_saved_model
        from mnist_dist.steps import (
            create_evaluate_loop,
            create_train_loop,
            is_worth_compiling,
        )
        from mnist_dist.train_state import TrainState
        from mnist_dist.trained_model import load_run_config
        from mnist_dist.training import TrainingRun

    # 1. What to train on: the data, and the devices.
    keras.utils.set_random_seed(FLAGS.seed)
    if FLAGS.deterministic:
        tf.config.experimental.enable_op_determinism()
    dataset = load_dataset(FLAGS.data_dir, **pick("validation_examples"))
    plan = train_flags.run_plan(len(dataset.train.labels))
    strategy = distribution.create_strategy(
        FLAGS.distribution_strategy,
        cluster=cluster,
        greeting=train_flags.shared() | {"data_checksum": dataset.checksum},
        is_stopping=stop.is_made,
        **pick("cluster_timeout peer_timeout num_gpus logical_cpus all_reduce_alg"),
    )
    stop.listen()  # only now: with several workers TensorFlow has taken SIGTERM
    is_resident = fits_on_device(
        FLAGS.data_on_device, num_bytes=dataset.num_bytes, strategy=strategy
    )

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
        model = create_model(
            FLAGS.model,
            image_shape=dataset.image_shape,
            num_classes=dataset.num_classes,
            **pick("seed dropout dtype"),
        )
        layer_weights.freeze_layers(model, FLAGS.freeze)
        state = TrainState(
            model,
            slot_names=update_rule.slots,
            with_ema=FLAGS.ema_decay > 0,
            with_loss_scale=FLAGS.dtype == "float16",
        )

    # 3. How: the functions that keep a device busy, and the host beside them.
    use_xla = FLAGS.enable_xla == "on" or (
        FLAGS.enable_xla == "auto" and is_worth_compiling(model, strategy)
    )
    run = TrainingRun(
        plan=plan,
        cluster=cluster,
        stop=stop,
        dataset=dataset,
        strategy=strategy,
        state=state,
        train_loop=create_train_loop(
            strategy,
            state,
            update_rule=update_rule,
            schedule=schedule,
            with_augmentation=FLAGS.augment,
            use_xla=use_xla,
            **pick("global_batch_size seed label_smoothing clip_global_norm ema_decay"),
        ),
        evaluate_loop=create_evaluate_loop(strategy, state, use_xla=use_xla),
        schedule=schedule,
        is_resident=is_resident,
        show_progress=FLAGS.progress,
        **pick("model_dir global_batch_size seed"),
    )
    settings = train_flags.shaping() | {"data_checksum": dataset.checksum}
    if cluster.is_chief:
        what = report.describe_run(
            plan=plan,
            dataset=dataset,
            strategy=strategy,
            state=state,
            use_xla=use_xla,
            is_resident=is_resident,
            **pick("model_dir global_batch_size"),
        )
        print(what, flush=True)

    # 4. Where this run left off, if it had begun: the chief tells the other workers.
    arrays = None
    if cluster.is_chief:
        if not FLAGS.dry_run:
            lock = run_directory.open_for_writing(FLAGS.model_dir)
        if not FLAGS.overwrite:
            if FLAGS.restore != "none" and not FLAGS.override_config:
                run_directory.check_settings(FLAGS.model_dir, settings)
            arrays = checkpoints.find_start(
                run_directory.checkpoint_dirs(FLAGS.model_dir),
                restore=FLAGS.restore,
                specs=run.specs(),
            )
        if arrays is None and FLAGS.init_from:
            initial = layer_weights.load_initial(FLAGS.init_from, model)
            state.from_arrays(layer_weights.initial_arrays(initial))
            print(layer_weights.describe_fit(initial), flush=True)
    if FLAGS.dry_run:
        distribution.leave_together(strategy)
        return 0
    if cluster.is_chief:
        if FLAGS.overwrite:
            run_directory.delete_run(FLAGS.model_dir)
        run_directory.save_config(
            FLAGS.model_dir,
            settings=settings,
            flags=train_flags.values(),
            resolved={"data": dataset.source, "image_shape": dataset.image_shape}
            | {"num_classes": dataset.num_classes, "use_xla": use_xla}
            | {"total_steps": plan.total_steps}
            | {"steps_per_epoch": plan.steps_per_epoch}
            | {"devices": list(strategy.extended.worker_devices)}
            | {"num_workers": cluster.num_workers},
        )
    run.start(arrays)
    if cluster.is_chief:
        run.log.write_text("settings", report.settings_table(train_flags.values()))
        run.log.write_text("model", report.model_table(state))

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

    # 6. What is left behind.
    if run.is_stopping():
        print(report.describe_stop(FLAGS.model_dir, run.step, stop.signal_name))
    elif cluster.is_chief:
        export_path = None
        if FLAGS.export:
            export_path = export_saved_model(
                state,
                FLAGS.export_dir or run_directory.export_dir(FLAGS.model_dir),
                config=load_run_config(FLAGS.model_dir),
                uses_ema=FLAGS.ema_decay > 0,
                evaluation=dataset.evaluation,
            ).path
        print(report.describe_end(run, dataset.evaluation.name, export_path))
    if cluster.is_chief:
        lock.close()
    distribution.leave_together(strategy)
    return program.EXIT_STOPPED if run.is_stopping() else 0


if __name__ == "__main__":
    program.outlive("stdout")
    program.run(main, leaves_at_once=True)
