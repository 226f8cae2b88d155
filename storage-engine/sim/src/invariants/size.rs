//! The volume never gets smaller: whoever asks after a resize was acknowledged, or after a size was
//! seen, finds at least that.

use crate::history::Sight;

pub fn violations(sights: &[Sight]) -> Vec<String> {
    let smaller = |later: &Sight| {
        let known = sights.iter().filter(|known| known.told < later.asked);
        let (size, since) = known.map(|known| (known.size, known.told)).max()?;
        (later.size < size).then(|| format!("size: it was {size} at {since}: {later:?}"))
    };
    sights.iter().filter_map(smaller).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Moment;

    #[test]
    fn a_size_that_was_acknowledged_is_found_by_whoever_asks_later() {
        let sight = |asked: Moment, told, size| Sight { asked, told, size };
        let resize = sight(1, 4, 20);
        assert_eq!(violations(&[resize, sight(3, 5, 10), sight(6, 7, 20)]).len(), 0);
        assert_eq!(violations(&[resize, sight(5, 6, 10)]).len(), 1);
    }
}
