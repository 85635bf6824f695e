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
from mnist_dist.train_flags import FLAGS


def main(argv: Sequence[str]) -> int:
    """Runs the whole job; returns the exit code."""
    del argv
    train_flags.check_flags()
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
        from mnist_dist.data import ExampleStream, load_dataset
        from mnist_dist.device_data import DeviceSplit, fits_on_device
        from mnist_dist.models import create_model
        from mnist_dist.preemption import StopRequest
        from mnist_dist.saved_model import export_saved_model
        from mnist_dist.steps import (
            create_evaluate_loop,
            create_train_loop,
            has_convolutions,
        )
        from mnist_dist.train_state import TrainState
        from mnist_dist.trained_model import load_run_config
        from mnist_dist.training import TrainingRun

    # 1. What to train on: the data, and the devices.
    keras.utils.set_random_seed(FLAGS.seed)
    if FLAGS.deterministic:
        tf.config.experimental.enable_op_determinism()
    dataset = load_dataset(
        FLAGS.data_dir, validation_examples=FLAGS.validation_examples
    )
    total_steps, steps_per_epoch = train_flags.num_steps(len(dataset.train.labels))
    strategy = distribution.create_strategy(
        FLAGS.distribution_strategy,
        num_gpus=FLAGS.num_gpus,
        logical_cpus=FLAGS.logical_cpus,
        all_reduce_alg=FLAGS.all_reduce_alg,
    )
    is_resident = fits_on_device(
        FLAGS.data_on_device,
        num_bytes=dataset.train.images.nbytes + dataset.evaluation.images.nbytes,
        strategy=strategy,
    )

    # 2. What to train: the model and every variable, once on each replica.
    update_rule = optimizers.create_update_rule(
        FLAGS.optimizer,
        momentum=FLAGS.momentum,
        nesterov=FLAGS.nesterov,
        weight_decay=FLAGS.weight_decay,
    )
    schedule = optimizers.create_schedule(
        FLAGS.lr_schedule,
        learning_rate=FLAGS.learning_rate,
        total_steps=total_steps,
        warmup_steps=FLAGS.warmup_steps,
    )
    with strategy.scope():
        model = create_model(
            FLAGS.model,
            image_shape=dataset.image_shape,
            num_classes=dataset.num_classes,
            seed=FLAGS.seed,
            dropout=FLAGS.dropout,
            dtype=FLAGS.dtype,
        )
        state = TrainState(
            model,
            slot_names=update_rule.slots,
            with_ema=FLAGS.ema_decay > 0,
            with_loss_scale=FLAGS.dtype == "float16",
        )

    # 3. How: the functions that keep a device busy.
    use_xla = FLAGS.enable_xla == "on" or (
        FLAGS.enable_xla == "auto"
        and (distribution.device_type(strategy) == "GPU" or not has_convolutions(model))
    )
    train_loop = create_train_loop(
        strategy,
        state,
        update_rule=update_rule,
        schedule=schedule,
        global_batch_size=FLAGS.global_batch_size,
        seed=FLAGS.seed,
        with_augmentation=FLAGS.augment,
        label_smoothing=FLAGS.label_smoothing,
        clip_global_norm=FLAGS.clip_global_norm,
        ema_decay=FLAGS.ema_decay,
        use_xla=use_xla,
    )
    evaluate_loop = create_evaluate_loop(strategy, state, use_xla=use_xla)
    run = TrainingRun(
        model_dir=FLAGS.model_dir,
        state=state,
        train_loop=train_loop,
        evaluate_loop=evaluate_loop,
        train_data=DeviceSplit(strategy, dataset.train, is_resident=is_resident),
        eval_data=DeviceSplit(strategy, dataset.evaluation, is_resident=is_resident),
        stream=ExampleStream(num_examples=len(dataset.train.labels), seed=FLAGS.seed),
        schedule=schedule,
        num_replicas=strategy.num_replicas_in_sync,
        global_batch_size=FLAGS.global_batch_size,
        total_steps=total_steps,
        eval_interval=FLAGS.eval_interval or steps_per_epoch,
        checkpoint_interval=FLAGS.checkpoint_interval or steps_per_epoch,
        summary_interval=FLAGS.summary_interval or max(steps_per_epoch // 10, 1),
        steps_per_loop=FLAGS.steps_per_loop,
        max_to_keep=FLAGS.max_to_keep,
        max_nonfinite_steps=FLAGS.max_nonfinite_steps,
        eval_split=dataset.evaluation.name,
        target_accuracy=FLAGS.target_accuracy,
        early_stopping_patience=FLAGS.early_stopping_patience,
        profile_steps=train_flags.profile_steps(),
        show_progress=FLAGS.progress,
    )
    plan = report.describe_run(
        model_dir=FLAGS.model_dir,
        dataset=dataset,
        strategy=strategy,
        state=state,
        global_batch_size=FLAGS.global_batch_size,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        use_xla=use_xla,
        is_resident=is_resident,
    )
    print(plan, flush=True)

    # 4. Where this run left off, if it had begun.
    arrays = checkpoints.find_start(
        run_directory.checkpoint_dir(FLAGS.model_dir),
        restore=FLAGS.restore,
        specs=run.specs(),
    )
    if arrays is None and FLAGS.init_from:
        state.from_arrays(
            checkpoints.load_weights(FLAGS.init_from, specs=state.specs())
        )
    if FLAGS.dry_run:
        return 0
    run_directory.prepare_run_directory(FLAGS.model_dir)
    run_directory.save_config(
        FLAGS.model_dir,
        flags=train_flags.values(),
        resolved={"data": dataset.source, "data_checksum": dataset.checksum}
        | {"image_shape": dataset.image_shape, "num_classes": dataset.num_classes}
        | {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
        | {"devices": list(strategy.extended.worker_devices), "use_xla": use_xla},
    )
    stop = StopRequest()
    run.start(arrays)
    run.log.write_text("settings", report.settings_table(train_flags.values()))
    run.log.write_text("model", report.model_table(state))

    # 5. Many steps in one call on the device; between two calls, what is due.
    while True:
        if run.is_due(run.eval_interval) and not run.log.has_eval(run.step):
            run.evaluate()
        if run.is_due(run.checkpoint_interval):
            run.save()
        if run.is_done() or stop.signal_name:
            break
        run.train_until_next_event()
        if run.is_due(run.summary_interval):
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
            config=load_run_config(FLAGS.model_dir),
            uses_ema=FLAGS.ema_decay > 0,
            evaluation=dataset.evaluation,
        ).path
    print(report.describe_end(run, dataset.evaluation.name, export_path), flush=True)
    return 0


if __name__ == "__main__":
    program.run(main)
