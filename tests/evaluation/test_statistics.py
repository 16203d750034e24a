"""Each statistic against scipy, a closed form or a count by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from nova3d.evaluation.statistics import (
    Interval,
    cohen_dz,
    detectable_difference,
    fewest_objects,
    holm,
    mean_interval,
    over_seeds,
    paired,
    rank_biserial,
    verdict,
    wilcoxon,
)

NAN = math.nan


def sample(n: int, seed: int = 0, skewed: bool = False) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.lognormal(size=n) if skewed else generator.normal(0.5, 1.0, n)


@pytest.mark.parametrize("method", ["bca", "percentile"])
@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_are_scipys_on_the_same_resamples(method, skewed):
    x = sample(25, 3, skewed)
    expected = stats.bootstrap(
        (x,), np.mean, n_resamples=2000, method=method, confidence_level=0.9, rng=np.random.default_rng(7)
    ).confidence_interval
    ours = mean_interval(x, 0.9, method, 2000, seed=7, expanded=False)
    assert (ours.low, ours.high) == pytest.approx(tuple(expected), abs=1e-12)
    assert ours.mean == pytest.approx(x.mean())


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_expanded_intervals_have_students_width_for_normal_scores(method):
    x = stats.norm.ppf((np.arange(12) + 0.5) / 12)  # symmetric, so that both methods have Student's ends
    t = stats.t.ppf(0.975, 11) * x.std(ddof=1) / math.sqrt(12)
    plain, ours = (mean_interval(x, method=method, resamples=40_000, expanded=e) for e in (False, True))
    assert (ours.low, ours.high) == pytest.approx((-t, t), rel=0.04)
    assert plain.high < 0.9 * t


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_95_percent_intervals_hold_the_mean_of_30_normal_values_93_to_97_times_in_100(method):
    generator = np.random.default_rng(11)
    found = (mean_interval(generator.normal(size=30), method=method, resamples=400, seed=i) for i in range(1200))
    assert 0.93 <= np.mean([interval.low <= 0 <= interval.high for interval in found]) <= 0.97


def test_intervals_are_narrower_than_promised_for_few_skewed_values():
    generator = np.random.default_rng(12)
    found = (mean_interval(generator.lognormal(size=8), resamples=300, seed=i) for i in range(500))
    coverage = np.mean([interval.low <= math.exp(0.5) <= interval.high for interval in found])
    assert 0.75 < coverage < 0.92  # the docstring says so, and why not to trust eight skewed objects


def test_intervals_are_the_same_again_and_differ_with_the_seed():
    x = sample(20)
    assert mean_interval(x, seed=1) == mean_interval(x, seed=1)
    assert mean_interval(x, seed=1) != mean_interval(x, seed=2)


def test_drawing_in_parts_changes_nothing(monkeypatch):
    x = sample(20)
    whole = mean_interval(x, resamples=1000)
    monkeypatch.setattr("nova3d.evaluation.statistics._DRAWS_AT_ONCE", 20 * 333)
    assert mean_interval(x, resamples=1000) == whole


def test_few_objects_have_a_mean_and_no_interval():
    for values in ([3.0], [1.0, 2.0, 3.0, 4.0, 8.0]):
        few = mean_interval(values)
        assert (few.mean, few.n) == (pytest.approx(np.mean(values)), len(values))
        assert math.isnan(few.low) and math.isnan(few.high)
    assert math.isnan(mean_interval([]).mean)
    equal = mean_interval([0.1] * 7)
    assert (equal.low, equal.high) == pytest.approx((0.1, 0.1), abs=1e-15)


@pytest.mark.parametrize("bad", [[1.0, NAN], [1.0, math.inf], [[1.0, 2.0]]])
def test_failures_are_not_averaged(bad):
    for function in (mean_interval, wilcoxon, cohen_dz, rank_biserial, detectable_difference):
        with pytest.raises(ValueError, match="finite"):
            function(bad)


def test_paired_compares_on_the_objects_that_both_have_and_counts_the_others():
    a, b = [1.0, 2.0, NAN, 4.0, 9.0], [0.5, 1.0, 7.0, NAN, 5.0]
    result = paired(a, b, resamples=500)
    assert (result.n, result.missing) == (3, 2)
    assert (result.mean, result.baseline_mean) == pytest.approx((4.0, 6.5 / 3))
    assert result.interval.mean == pytest.approx(5.5 / 3) and result.interval.n == 3
    assert result.p == wilcoxon([0.5, 1.0, 4.0]) and result.d_z == cohen_dz([0.5, 1.0, 4.0])


def test_paired_has_the_interval_of_the_differences():
    a, b = sample(9, 1), sample(9, 2)
    assert paired([*a, NAN], [*b, 1.0], 0.9, "percentile", 500, seed=3).interval == mean_interval(
        a - b, 0.9, "percentile", 500, seed=3
    )


def test_paired_without_a_common_object_says_nothing():
    result = paired([1.0, NAN], [NAN, 1.0])
    assert (result.n, result.missing) == (0, 2)
    assert all(math.isnan(value) for value in (result.mean, result.interval.mean, result.p, result.d_z))
    assert verdict(result.interval) == "no difference shown"


def test_paired_refuses_other_objects():
    with pytest.raises(ValueError, match="same objects"):
        paired([1.0, 2.0], [1.0])


def test_pairing_shows_what_unpaired_means_hide():
    objects, noise = 10 * sample(30, 1), 0.1 * sample(30, 2)
    result = paired(objects + 0.3 + noise, objects)
    assert verdict(result.interval) == "better"
    assert stats.ttest_ind(objects + 0.3 + noise, objects).pvalue > 0.5


@pytest.mark.parametrize("n", [8, 30, 60])
def test_wilcoxon_is_scipys(n):
    d = sample(n, n)
    assert wilcoxon(d) == stats.wilcoxon(d).pvalue
    assert wilcoxon([*d, 0.0]) == wilcoxon(d)  # an object on which both are equal says nothing


def test_wilcoxon_with_ties_is_exact_over_all_signs():
    d = np.array([1.0, 1.0, -1.0, 2.0, 2.0, 3.0, -0.5, 0.0])
    ranks = stats.rankdata(np.abs(d[d != 0]))
    totals = [abs(np.dot(ranks, signs)) for signs in itertools.product((-1, 1), repeat=len(ranks))]
    observed = abs(float((ranks * np.sign(d[d != 0])).sum()))
    assert wilcoxon(d) == pytest.approx(np.mean([total >= observed - 1e-9 for total in totals]))


def test_wilcoxon_at_its_ends():
    assert wilcoxon([0.0, 0.0]) == 1.0 and wilcoxon([2.0]) == 1.0 and math.isnan(wilcoxon([]))
    assert wilcoxon([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == pytest.approx(2 / 2**6)


def test_effect_sizes_by_hand():
    d = [1.0, 2.0, 3.0, -4.0]
    assert cohen_dz(d) == pytest.approx(0.5 / math.sqrt(29 / 3))
    assert rank_biserial(d) == pytest.approx((1 + 2 + 3 - 4) / 10)
    assert rank_biserial([1.0, -1.0, 2.0, 0.0]) == pytest.approx((1.5 - 1.5 + 3) / 6)
    assert rank_biserial([3.0, 1.0]) == 1.0
    assert math.isnan(cohen_dz([2.0, 2.0])) and math.isnan(cohen_dz([2.0])) and math.isnan(rank_biserial([0.0]))


@pytest.mark.parametrize(("n", "alpha"), [(8, 0.05), (8, 0.005), (30, 0.05)])
def test_detectable_difference_has_the_power_it_names(n, alpha):
    generator = np.random.default_rng(4)
    delta = detectable_difference(stats.zscore(np.arange(n), ddof=1), alpha=alpha)  # for a standard deviation of 1
    studies = generator.normal(delta, 1, (8000, n))
    assert np.mean(stats.ttest_1samp(studies, 0, axis=1).pvalue < alpha) == pytest.approx(0.8, abs=0.015)


def test_detectable_difference_of_30_objects_is_about_half_a_standard_deviation():
    d = sample(30, 6)
    # (1.960 + 0.842) / sqrt(30) = 0.51 with normal quantiles; Student's are a little wider
    assert detectable_difference(d) / d.std(ddof=1) == pytest.approx(0.529, abs=0.002)
    assert detectable_difference(np.tile(d, 50)) / d.std() == pytest.approx(2.802 / math.sqrt(1500), rel=0.002)
    assert math.isnan(detectable_difference([1.0]))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02] and holm([]) == []


def test_holm_leaves_out_what_could_not_be_tested():
    adjusted = holm([0.01, NAN, 0.04])
    assert adjusted[0] == pytest.approx(0.02) and math.isnan(adjusted[1]) and adjusted[2] == pytest.approx(0.04)


def test_holm_keeps_false_claims_of_a_family_below_alpha():
    generator = np.random.default_rng(3)
    families = generator.uniform(size=(4000, 10))
    assert np.mean([min(holm(p)) <= 0.05 for p in families]) == pytest.approx(0.05, abs=0.012)


def test_verdict_follows_the_interval_and_the_metrics_direction():
    above, below, across = Interval(2, 1, 3, 30), Interval(-2, -3, -1, 30), Interval(0.5, -1, 2, 30)
    assert verdict(above) == verdict(below, lower_is_better=True) == "better"
    assert verdict(below) == verdict(above, lower_is_better=True) == "worse"
    assert verdict(across) == verdict(across, lower_is_better=True) == "no difference shown"
    assert verdict(Interval(1, 0, 2, 30)) == "no difference shown"
    assert verdict(Interval(1, NAN, NAN, 1)) == "no difference shown"


def test_no_verdict_on_fewer_objects_than_could_show_one():
    assert fewest_objects() == 6  # 2/2^5 = 6 % of five differences have one sign by chance, 2/2^6 = 3 % of six
    assert fewest_objects(family=2) == 7 and fewest_objects(confidence=0.5) == fewest_objects(confidence=0.1) == 2
    assert verdict(mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])) == "no difference shown"
    assert verdict(mean_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])) == "better"


def test_over_seeds_keeps_mean_spread_and_best_apart():
    rows = [{"a": 1.0, "b": 5.0}, {"a": 3.0, "b": 3.0}, {"b": 7.0, "a": 5.0}]
    high, low = over_seeds(rows), over_seeds(rows, lower_is_better=True)
    assert (high.mean, high.best, high.k) == pytest.approx((4.0, 6.0, 3))
    assert high.between == pytest.approx(np.std([3.0, 3.0, 6.0], ddof=1))
    assert low.best == pytest.approx(2.0) and low.mean == high.mean
    assert math.isnan(over_seeds(rows[:1]).between)


def test_over_seeds_does_not_hide_a_failed_seed():
    result = over_seeds([{"a": 1.0}, {"a": NAN}])
    assert math.isnan(result.mean) and math.isnan(result.best)
    for rows in ([], [{"a": 1.0}, {"b": 1.0}]):
        with pytest.raises(ValueError, match="same objects"):
            over_seeds(rows)
