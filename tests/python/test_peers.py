"""What users of other SAM packages ran into, each with the test here that covers it.

The numbers are the rows that tests cite as "test_peers.py, row N". A row without a test says why. The table is checked:
every test that it names exists.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent

#: row: (what went wrong elsewhere, tests here as file::function)
COVERED: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "GradScaler unusable: can't unscale twice",
        ("test_keep_perturbed::test_a_scaler_unscales_clips_and_steps_in_both_forms",),
    ),
    2: (
        "an inf in the gradients: which weights are left when the step is skipped",
        (
            "test_loops::test_a_scaler_skips_infs_leaves_clean_weights_and_goes_on",
            "test_loops::test_a_scaler_that_skips_every_step_leaves_the_bits_of_the_start",
            "test_masters::test_a_scaler_that_skips_a_step_leaves_masters_and_weights",
        ),
    ),
    3: (
        "two-pass steps do not fit AMP",
        (
            "test_loops::test_bf16_autocast_sees_the_noisy_float32_weights",
            "test_loops::test_one_autocast_around_several_passes_does_not_reuse_the_weights_of_the_first",
        ),
    ),
    4: (
        "DDP: where no_sync goes; ranks fall out of step",
        (
            "test_distributed::test_the_ranks_end_in_the_same_bits_and_agree_on_the_seed",
            "test_distributed::test_two_ranks_are_one_process_with_the_whole_batch",
        ),
    ),
    5: (
        "the wrapper kept its own groups, and a scheduler's changes were lost",
        (
            "test_wrap::test_groups_and_state_are_the_base_s_own",
            "test_wrap::test_a_scheduler_may_hold_either_of_the_two",
        ),
    ),
    6: (
        "ZeRO and sharded optimizers crash in the constructor",
        (
            "test_sharded::test_on_ranks",
            "test_sharded::test_a_checkpoint_of_two_ranks_resumes_in_one_process",
        ),
    ),
    7: (
        "requires closure, but it was not provided",
        ("test_ssam_driving::test_a_step_without_a_perturbed_gradient_is_refused_and_names_the_ways",),
    ),
    8: (
        "closure not called first, or not under enable_grad",
        (
            "test_ssam_driving::"
            "test_the_closure_runs_at_perturbed_weights_with_gradients_enabled_also_under_no_grad",
        ),
    ),
    9: (
        "Lightning needs manual optimization, or crashes",
        (
            "test_frameworks::test_lightning_s_automatic_optimization_trains_as_our_own_loop_does",
            "test_frameworks::test_lightning_accumulates_clips_and_saves_clean_with_keep_perturbed",
            "test_frameworks::test_lightning_on_two_processes_keeps_ranks_together",
        ),
    ),
    10: (
        "Hugging Face Trainer unsupported",
        (
            "test_frameworks::test_hugging_face_trainer_learns_saves_clean_and_resumes_in_the_same_bits",
            "test_frameworks::test_hugging_face_trainer_loads_the_best_model_at_the_end",
        ),
    ),
    11: (
        "skorch needs its train step changed",
        ("test_frameworks::test_skorch_trains_as_our_own_loop_does_and_saves_clean",),
    ),
    12: (
        "gradient accumulation unclear",
        (
            "test_ssam_driving::test_several_backward_passes_inside_one_perturb_accumulate",
            "test_loops::test_accumulating_and_clipping_acts_on_the_gradient_at_the_noisy_weights",
            "test_ssam_driving::test_a_closure_that_adds_to_gradients_taken_at_clean_weights_is_named_once",
        ),
    ),
    13: (
        "loss collapses after resume; the base optimizer's state was not in the checkpoint",
        (
            "test_checkpoints::test_a_resumed_run_ends_in_the_bits_of_an_uninterrupted_one",
            "test_killed::test_a_run_killed_at_random_moments_ends_in_the_same_bits",
            "test_frameworks::test_lightning_resumes_in_the_middle_of_an_epoch",
        ),
    ),
    14: (
        "does a scheduler go on the wrapper or on the base?",
        ("test_wrap::test_a_scheduler_may_hold_either_of_the_two",),
    ),
    15: (
        "BatchNorm statistics gathered at perturbed weights",
        (
            "test_clean_weights::test_update_bn_gathers_the_statistics_of_the_clean_weights",
            "test_clean_weights::test_frozen_batchnorm_keeps_statistics_and_computes_the_same",
        ),
    ),
    16: (
        "device fixed at construction; no exception safety",
        (
            "test_exceptions::test_an_exception_inside_perturb_leaves_the_clean_bits_and_uses_the_draw",
            "test_signals::test_an_interrupt_at_any_point_leaves_the_clean_bits_before_the_handler_runs",
            "test_ssam_optimizer::test_optimizers_and_models_can_be_built_on_the_meta_device",
        ),
    ),
    17: (
        "the closure form does not sample, so it is no drop-in",
        ("test_ssam_driving::test_all_ways_of_driving_end_in_the_same_bits",),
    ),
    18: (
        "a fork needed for devices, mixed precision, accumulation",
        (
            "test_frameworks::test_accelerate_accumulates_clips_and_warms_up_with_one_draw_a_step",
            "test_masters::test_training_in_bfloat16_reaches_the_loss_of_float32_with_masters_and_not_without",
        ),
    ),
    21: (
        "a scheduler change recompiles the compiled step",
        ("test_compile::test_schedulers_of_lr_and_noise_std_compile_nothing_again_and_the_numbers_stay",),
    ),
    22: (
        "C++ optimizers lag behind Python, serialization too",
        ("test_cpp_parity::*",),
    ),
    24: (
        "RNG state missing from checkpoints",
        (
            "test_checkpoints::test_a_resumed_run_ends_in_the_bits_of_an_uninterrupted_one",
            "test_loops::test_torch_distributed_checkpoint_resumes_in_the_same_bits",
        ),
    ),
    25: (
        "restore by subtracting the noise is not exact; weights drift, ranks part",
        (
            "test_ssam_driving::test_restoring_is_exact_for_every_value_and_layout",
            "test_distributed::test_the_ranks_end_in_the_same_bits_and_agree_on_the_seed",
        ),
    ),
    31: (
        "noise, then quantise, where quantise, then noise was meant",
        (
            "test_limits::test_a_quantiser_in_the_forward_rounds_the_noisy_weights",
            "test_limits::test_noise_inside_of_quantized_comes_after_the_rounding",
        ),
    ),
    32: (
        "eval() did not reach the wrapped optimizer; train-mode weights were saved",
        (
            "test_attached::test_copies_of_an_attached_model_are_clean_and_plain",
            "test_attached::test_a_forward_in_eval_mode_at_perturbed_weights_warns_once_and_says_what_to_do",
            "test_attached::test_an_optimizer_that_is_let_go_in_train_puts_the_clean_weights_back",
        ),
    ),
    33: (
        "a wrapper dropped the caller's groups",
        (
            "test_wrap::test_the_noise_options_may_differ_by_group_of_the_base",
            "test_wrap::test_a_group_added_through_either_is_perturbed",
        ),
    ),
    34: (
        "averaged weights swapped in at the wrong moment",
        (
            "test_frameworks::test_callbacks_of_lightning_read_clean_weights_in_any_order",
            "test_frameworks::test_lightning_averages_clean_weights_in_any_order",
            "test_clean_weights::test_an_average_of_clean_weights_is_the_same_in_both_forms",
        ),
    ),
    35: (
        "reentrant checkpointing hides parameters",
        (
            "test_hidden_parameters::test_gradients_and_curvature_are_right_or_refused",
            "test_hidden_parameters::test_what_is_hidden_is_named_with_what_to_do",
        ),
    ),
    36: (
        "weights clipped through .data",
        (
            "test_limits::test_weights_clipped_through_data_count_where_they_are_clean",
            "test_written_masters::test_a_write_that_no_version_counts_is_kept",
        ),
    ),
    37: (
        "Embedding(max_norm=) writes in the forward",
        (
            "test_limits::test_max_norm_in_a_pass_is_named_and_what_it_wrote_is_kept",
            "test_measured_models::test_every_measure_leaves_every_bit_whatever_the_model_does",
            "test_measured_models::test_the_average_under_max_norm_is_that_of_fresh_copies",
        ),
    ),
    39: (
        "recomputation outside the perturbed region",
        (
            "test_counted_passes::test_a_backward_outside_is_named_also_where_checkpointing_recomputes",
            "test_loops::test_gradient_checkpointing_recomputes_at_the_same_noisy_weights",
        ),
    ),
    40: (
        "parametrize.cached",
        (
            "test_cached_weights::test_passes_and_steps_see_their_own_weights",
            "test_cached_weights::test_measures_of_sharpness_see_the_weights_that_they_write",
        ),
    ),
    41: (
        "observers resize buffers",
        (
            "test_measured_models::test_every_measure_leaves_every_bit_whatever_the_model_does",
            "test_measured_models::test_a_measure_that_is_stopped_leaves_every_bit",
        ),
    ),
    42: (
        "lr=None",
        ("test_wrapped_bases::test_a_base_without_a_learning_rate_trains_and_names_the_ways_to_drive_it",),
    ),
    43: (
        "modules that cannot be deep-copied",
        ("test_measured_models::test_checkpoints_of_models_that_cannot_be_copied_are_compared",),
    ),
    44: (
        "optimizers that do not call super().__init__()",
        ("test_wrapped_bases::test_a_base_without_torch_s_attributes_is_refused_in_words",),
    ),
    45: (
        "Hogwild",
        ("test_other_optimizers::test_weights_that_processes_share_are_warned_of_once",),
    ),
}

#: row: (what went wrong elsewhere, why no Python test covers it)
NOT_COVERED: dict[int, tuple[str, str]] = {
    19: ("CPU random numbers take 40% of run time", "speed: benchmarks, and tools/check_instructions.py in make test"),
    20: ("fused slower than unfused at large sizes", "speed: benchmarks, and tools/check_instructions.py in make test"),
    23: ("an extension breaks when the PyTorch version differs", "needs other PyTorch builds: tools/check_wheel.sh"),
}  # fmt: skip


@cache
def functions_of(file: str) -> frozenset[str]:
    tree = ast.parse((HERE / f"{file}.py").read_text())
    return frozenset(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


@pytest.mark.parametrize("row", sorted(COVERED))
def test_every_test_that_the_table_names_exists(row: int) -> None:
    for name in COVERED[row][1]:
        file, function = name.split("::")
        assert functions_of(file) if function == "*" else function in functions_of(file), name


def test_every_row_is_in_one_of_the_tables() -> None:
    assert sorted([*COVERED, *NOT_COVERED]) == [*range(1, 26), *range(31, 38), *range(39, 46)]


def test_the_page_on_limits_names_the_files_of_the_tests_of_a_row() -> None:
    page = (HERE.parents[1] / "docs" / "limits.md").read_text()
    rows = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", page, re.MULTILINE)
    assert {5, 6, 33, 42, 44, 45} <= {int(row) for row, _ in rows}
    for row, tests in rows:
        named = set(re.findall(r"`tests/python/(\w+)\.py`", tests))
        assert named, row
        assert named <= {name.split("::")[0] for name in COVERED[int(row)][1]}, row
