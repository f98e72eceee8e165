//! The map against one flag per granule, with requests that begin and end in any order.

use super::*;
use crate::sim::Rng;

const GRANULES: u64 = 300;
/// The last granule is short.
const SIZE: u64 = GRANULES * GRANULE_BYTES - 4096;

fn flags(map: &ZeroMap) -> Vec<bool> {
    (0..GRANULES).map(|at| map.run_from(at, at + 1, u64::MAX).1).collect()
}

#[test]
fn runs_say_what_each_granule_says_from_wherever_they_begin() {
    let mut rng = Rng::new(3);
    for _ in 0..300 {
        let mut map = ZeroMap::unknown(SIZE, None);
        for _ in 0..rng.below(12) {
            let from = rng.below(SIZE);
            map.set(from..(from + rng.below(80 * GRANULE_BYTES)).min(SIZE));
        }
        let flags = flags(&map);
        let (from, mut at) = (rng.below(SIZE), 0);
        let end = from + 1 + rng.below(SIZE - from);
        let mut last = None;
        for (len, zero) in map.runs(from..end) {
            assert!(len > 0 && last != Some(zero));
            let granules = (from + at) / GRANULE_BYTES..(from + at + len).div_ceil(GRANULE_BYTES);
            assert!(granules.clone().all(|granule| flags[granule as usize] == zero), "{granules:?}");
            (at, last) = (at + len, Some(zero));
        }
        assert_eq!(from + at, end);
    }
}

/// A request under way, as the model knows it.
struct Request {
    key: Key,
    range: Range<u64>,
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// A granule is set by a zeroing that was alone in it all the while, and by nothing else; a write clears it.
#[test]
fn only_a_zeroing_that_no_write_met_sets_a_granule() {
    let mut rng = Rng::new(7);
    let (mut set, mut kept_out) = (0, 0);
    for round in 0..200 {
        let step = if round % 2 == 0 { Some(3 * GRANULE_BYTES / 2) } else { None };
        let mut map = ZeroMap::unknown(SIZE, step);
        let mut may_be_set = vec![false; GRANULES as usize];
        // Per zeroing under way, the granules in which it was alone.
        let mut alone: Vec<(Key, Vec<bool>)> = Vec::new();
        let mut requests: Vec<Request> = Vec::new();
        for key in 0..400 {
            if rng.chance(0.5) && !requests.is_empty() {
                let ended = requests.swap_remove(rng.index(requests.len()));
                let succeeded = rng.chance(0.9);
                map.on_end(ended.key, succeeded);
                if let Some(at) = alone.iter().position(|(key, _)| *key == ended.key) {
                    let (_, granules) = alone.swap_remove(at);
                    let hit = granules.iter().zip(&mut may_be_set).filter(|(alone, _)| **alone && succeeded);
                    hit.for_each(|(_, flag)| *flag = true);
                }
            } else {
                let from = rng.below(SIZE);
                let most = if rng.chance(0.1) { SIZE } else { 10 * GRANULE_BYTES };
                let range = from..(from + 1 + rng.below(most)).min(SIZE);
                let (zeroes, is_discard) = (rng.chance(0.5), rng.chance(0.5));
                if zeroes {
                    let in_flight = requests.iter().map(|other| other.range.clone());
                    map.on_zeroing(key, range.clone(), is_discard, in_flight);
                    let covers = |granule: u64| {
                        let bytes = granule * GRANULE_BYTES..((granule + 1) * GRANULE_BYTES).min(SIZE);
                        let (start, end) = match (is_discard, step) {
                            (false, _) => (range.start, range.end),
                            (true, Some(step)) => {
                                (range.start.next_multiple_of(step), range.end / step * step)
                            }
                            (true, None) => (0, 0),
                        };
                        let met = requests.iter().any(|other| overlap(&other.range, &bytes));
                        start <= bytes.start && bytes.end <= end && !met
                    };
                    alone.push((key, (0..GRANULES).map(covers).collect()));
                } else {
                    map.on_write(&range);
                    for granule in range.start / GRANULE_BYTES..range.end.div_ceil(GRANULE_BYTES) {
                        may_be_set[granule as usize] = false;
                        alone.iter_mut().for_each(|(_, granules)| granules[granule as usize] = false);
                    }
                }
                requests.push(Request { key, range });
            }
            let flags = flags(&map);
            for (granule, (is_set, may)) in flags.iter().zip(&may_be_set).enumerate() {
                assert!(
                    *may || !is_set,
                    "round {round}, request {key}: granule {granule} is said to be zeroes"
                );
                kept_out += usize::from(*may && !is_set);
                set += usize::from(*is_set);
            }
        }
    }
    assert_eq!(kept_out, 0, "nothing is forgotten while claims are few");
    assert!(set > 1000);
}

#[test]
fn claims_are_bounded_and_what_has_no_room_is_only_forgotten() {
    let size = 4096 * GRANULE_BYTES;
    let mut map = ZeroMap::unknown(size, None);
    map.on_zeroing(1, 0..size, false, std::iter::empty());
    // Every other granule is written: the claim falls into more pieces than are kept.
    for granule in (0..4096).step_by(2) {
        map.on_write(&(granule * GRANULE_BYTES..granule * GRANULE_BYTES + 1));
        assert!(map.claims.len() <= MAX_ZERO_CLAIMS);
    }
    map.on_end(1, true);
    assert!(map.claims.is_empty());
    let zero = |granule: u64| map.run_from(granule, granule + 1, u64::MAX).1;
    assert!((0..4096).step_by(2).all(|granule| !zero(granule)));
    assert!((1..4096).step_by(2).any(zero));
}

#[test]
fn a_unit_that_grows_knows_nothing_of_what_was_added() {
    let mut map = ZeroMap::unknown(SIZE, None);
    map.set(0..SIZE);
    map.grow(SIZE + 100 * GRANULE_BYTES);
    let runs: Vec<_> = map.runs(0..u64::MAX).collect();
    assert_eq!(runs[0], ((GRANULES - 1) * GRANULE_BYTES, true));
    assert!(runs[1..].iter().all(|(_, zero)| !zero));
    assert_eq!(runs.iter().map(|(len, _)| len).sum::<u64>(), SIZE + 100 * GRANULE_BYTES);
}

/// One look at a unit of 16 TiB used to take 22 ms, and whoever asks asks often.
#[test]
fn an_answer_looks_at_so_many_words_and_the_next_goes_on_behind_it() {
    const MOST: u64 = MAX_MAP_WORDS as u64 * 64 * GRANULE_BYTES;
    let size = 16u64 << 40;
    let mut map = ZeroMap::unknown(size, None);
    map.set(0..size);
    map.on_write(&(5 * MOST..5 * MOST + 1));
    for from in [0, 4096, 63 * GRANULE_BYTES, 3 * MOST + 65 * GRANULE_BYTES, 5 * MOST] {
        let told: u64 = map.runs(from..size).map(|(len, _)| len).sum();
        assert!(told <= MOST && told > MOST - 64 * GRANULE_BYTES, "{told} from {from}");
    }
    let (mut at, mut data) = (0, 0);
    while at < size {
        let before = at;
        for (len, zero) in map.runs(at..size) {
            (at, data) = (at + len, data + if zero { 0 } else { len });
        }
        assert!(at > before, "there is no answer from {at} on");
    }
    assert_eq!((at, data), (size, GRANULE_BYTES));
}
