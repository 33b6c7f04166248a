"""The latency target as people type it, and as they mistype it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halp_iee.errors import UsageError
from halp_iee.run.target import Target


@given(st.floats(min_value=1e-3, max_value=1.0))
def test_a_bare_number_is_a_fraction_of_the_dense_latency(share: float) -> None:
    assert Target.parse(f"{share:.12g}").resolve_ms(8.0) == pytest.approx(8.0 * share)


@given(st.floats(min_value=0.01, max_value=7.9), st.integers(1, 64))
def test_milliseconds_and_frames_a_second_say_the_same(ms: float, batch: int) -> None:
    by_time = Target.parse(f"{ms:.12g}ms").resolve_ms(8.0, batch)
    by_rate = Target.parse(f"{1000 * batch / ms:.12g} FPS").resolve_ms(8.0, batch)
    assert by_time == pytest.approx(by_rate)


@pytest.mark.parametrize(
    "text", ["0", "-1", "1.5", "abc", "", "nan", "inf", "0ms", "-3fps", "4 s", "0x3", "1e999", "30%", "3 0"]
)
def test_what_is_no_target_is_refused_in_one_line_with_the_text_in_it(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Target.parse(text)
    assert text.strip() in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["9ms", "8ms", "125fps", "100fps"])
def test_a_target_that_the_dense_network_meets_already_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="already runs in 8 ms"):
        Target.parse(text).resolve_ms(8.0)


@given(st.text(max_size=20))
def test_no_text_whatever_ends_in_another_error(text: str) -> None:
    try:
        target = Target.parse(text)
    except UsageError:
        return
    assert target.value > 0
