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
"""

from collections.abc import Sequence

from mnist_dist import program, train_flags
from mnist_dist.preemption import StopRequest
from mnist_dist.train_flags import FLAGS, pick


def main(argv: Sequence[str]) -> int:
    """Runs the whole job; returns the exit code."""
    del argv
    train_flags.check_flags()
    stop = StopRequest()
    # TensorFlow takes seconds to import: not before the flags are known to be good.
    with program.quiet_imports():
        import keras
        import tensorflow as tf

        from mnist_dist import (
            checkpoints,
            distribution,
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
        from mnist_dist.training import TrainingRun

    # 1. What to train on: the data, and the devices.
    keras.utils.set_random_seed(FLAGS.seed)
    if FLAGS.deterministic:
        tf.config.experimental.enable_op_determinism()
    dataset = load_dataset(FLAGS.data_dir, **pick("validation_examples"))
    plan = train_flags.run_plan(len(dataset.train.labels))
    strategy = distribution.create_strategy(
        FLAGS.distribution_strategy, **pick("num_gpus logical_cpus all_reduce_alg")
    )
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

    # 4. Where this run left off, if it had begun.
    settings = train_flags.shaping() | {"data_checksum": dataset.checksum}
    lock = None if FLAGS.dry_run else run_directory.open_for_writing(FLAGS.model_dir)
    arrays = None
    if not FLAGS.overwrite:
        if not FLAGS.override_config:
            run_directory.check_settings(FLAGS.model_dir, settings)
        arrays = checkpoints.find_start(
            run_directory.checkpoint_dirs(FLAGS.model_dir),
            restore=FLAGS.restore,
            specs=run.specs(),
        )
    if arrays is None and FLAGS.init_from:
        state.from_arrays(
            checkpoints.load_weights(FLAGS.init_from, specs=state.specs())
        )
    if FLAGS.dry_run:
        return 0
    if FLAGS.overwrite:
        run_directory.delete_run(FLAGS.model_dir)
    run_directory.save_config(
        FLAGS.model_dir,
        settings=settings,
        flags=train_flags.values(),
        resolved={"data": dataset.source, "image_shape": dataset.image_shape}
        | {"num_classes": dataset.num_classes, "use_xla": use_xla}
        | {"total_steps": plan.total_steps, "steps_per_epoch": plan.steps_per_epoch}
        | {"devices": list(strategy.extended.worker_devices)},
    )
    run.start(arrays)
    run.log.write_text("settings", report.settings_table(train_flags.values()))
    run.log.write_text("model", report.model_table(state))

    # 5. Many steps in one call on the device; between two calls, what is due.
    while True:
        if run.is_due(plan.eval_interval) and not run.log.has_eval(run.step):
            run.evaluate()
        if run.is_due(plan.checkpoint_interval):
            run.save()
        if run.is_done() or stop.signal_name:
            break
        run.train_until_next_event()
        if run.is_due(plan.summary_interval):
            run.summarize()
    run.save()
    run.close()

    # 6. What is left behind.
    if stop.signal_name:
        print(report.describe_stop(FLAGS.model_dir, run.step, stop.signal_name))
        return program.EXIT_STOPPED
    export_path = None
    if FLAGS.export:
        export_path = export_saved_model(
            state,
            FLAGS.export_dir or run_directory.export_dir(FLAGS.model_dir),
            sample_images=dataset.test.images[:256],
        )
    print(report.describe_end(run, dataset.evaluation.name, export_path), flush=True)
    if lock:
        lock.close()
    return 0


if __name__ == "__main__":
    program.outlive("stdout")
    program.run(main)
