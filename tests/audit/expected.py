"""Which findings each planted fault must give, and which faults cannot be in one dump."""

from __future__ import annotations

EXPECTED: dict[str, set[str]] = {
    "teacher_at_one": {"teacher_temperature"},
    "student_at_one": {"student_temperature"},
    "sampler_at_one": {"sampler_temperature"},
    "teacher_hotter": {"teacher_temperature"},
    "both_hotter": {"student_temperature", "teacher_temperature"},
    "teacher_divided": {"teacher_not_normalised"},
    "teacher_own": {"teacher_shift"},
    "teacher_early": {"teacher_shift"},
    "teacher_next": {"teacher_shift"},
    "teacher_previous": {"teacher_shift"},
    "student_next": {"student_shift"},
    "teacher_plain": {"teacher_template"},
    "teacher_response_alone": {"teacher_context"},
    "teacher_permuted": {"teacher_tokenizer_or_weights"},
    "sampler_noisy": {"sampler_trainer_mismatch"},
    "losses_k1": {"zero_expected_gradient"},
    "losses_right": set(),
    "losses_k3": {"k3_loss"},
    "losses_renormalised": {"renormalised_top_k"},
    "losses_by_row": {"normalisation"},
    "advantages_right": set(),
    "advantages_top_k": {"zero_expected_gradient"},
    "end_not_in_mask": {"end_not_in_mask"},
    "cut_rows_masked": {"truncation_bias"},
    "prompt_in_mask": {"prompt_in_mask"},
    "padding_in_mask": {"padding_in_mask"},
}

_ALONE = (
    {"teacher_at_one", "teacher_hotter", "both_hotter", "teacher_divided", "teacher_permuted"},
    {"teacher_own", "teacher_early", "teacher_next", "teacher_previous", "teacher_permuted"},
    {"teacher_plain", "teacher_response_alone", "teacher_permuted"},
    {"student_at_one", "both_hotter"},
    {"sampler_at_one", "sampler_noisy"},
    {name for name in EXPECTED if name.startswith("losses")},
    {name for name in EXPECTED if name.startswith("advantages")},
    {"losses_k1", "advantages_right"},  # losses beside advantages are a metric, and this one is a right one
)


def coexist(a: str, b: str) -> bool:
    return not any(a in group and b in group for group in _ALONE)
