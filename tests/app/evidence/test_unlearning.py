"""The record of an unlearning."""

from app.evidence.unlearning import SHOWN, LossPoint, thin


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    def points(count: int) -> list[LossPoint]:
        return [LossPoint(step=i, loss=1, forget=1, retain=None, learning_rate=1) for i in range(1, count + 1)]

    assert thin([]) == []
    assert thin(points(SHOWN)) == points(SHOWN)
    for count in (SHOWN + 1, 3 * SHOWN - 1, 12345):
        shown = thin(points(count))
        assert SHOWN / 2 <= len(shown) <= SHOWN
        assert shown[-1].step == count
