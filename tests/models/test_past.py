"""What was known before a row, against a loop over all purchases."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation.past import HALF_LIFE_MS, look_back

DAY_MS = 86_400_000
people, goods, instants = (
    st.sampled_from("abc"),
    st.sampled_from("xyz"),
    st.integers(0, 400).map(lambda day: day * DAY_MS),
)
bought = st.lists(st.tuples(people, goods, instants), min_size=1, max_size=30)
asked = st.lists(st.tuples(st.sampled_from("abcn"), st.sampled_from("xyzn"), instants), min_size=1, max_size=10)


@given(bought, asked)
def test_what_lies_before_is_what_a_loop_counts(purchases, rows):
    frame = pd.DataFrame(purchases, columns=["user_id", "item_id", "event_time"])
    user, item, at = (
        np.array(column, dtype)
        for column, dtype in zip(zip(*rows, strict=True), (object, object, np.int64), strict=True)
    )
    found = look_back(frame, user, item, at)
    for row, (who, what, now) in enumerate(rows):
        earlier = [one for one in purchases if one[2] < now]
        his, its = [one for one in earlier if one[0] == who], [one for one in earlier if one[1] == what]
        both = [one for one in his if one[1] == what]
        assert (found.user_count[row], found.item_count[row], found.pair_count[row]) == (len(his), len(its), len(both))
        assert found.user_age_ms[row] == (now - min(one[2] for one in his) if his else -1)
        assert found.item_age_ms[row] == (now - min(one[2] for one in its) if its else -1)
        assert found.habit[row] == pytest.approx(sum(2 ** (-(now - one[2]) / HALF_LIFE_MS) for one in both), abs=1e-9)
