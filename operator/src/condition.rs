//! Status conditions as the Kubernetes API conventions want them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// Longest message that the API takes.
const MESSAGE_MAX: usize = 32_768;

/// A condition before it is compared with what was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionState {
    status: &'static str,
    reason: &'static str,
    message: String,
}

impl ConditionState {
    pub fn yes(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: "True", reason, message: message.into() }
    }

    pub fn no(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: "False", reason, message: message.into() }
    }

    pub fn unknown(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: "Unknown", reason, message: message.into() }
    }

    pub fn is_true(&self) -> bool {
        self.status == "True"
    }
}

/// Puts `state` into `conditions`; the time of the last transition changes with the status only.
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    kind: &str,
    state: ConditionState,
    generation: Option<i64>,
    now: Timestamp,
) {
    let old = conditions.iter().position(|condition| condition.type_ == kind);
    let since = old
        .map(|index| &conditions[index])
        .filter(|condition| condition.status == state.status)
        .map_or(Time(whole_seconds(now)), |condition| condition.last_transition_time.clone());
    let mut message = state.message;
    let end = message.floor_char_boundary(MESSAGE_MAX);
    message.truncate(end);
    let condition = Condition {
        type_: kind.into(),
        status: state.status.into(),
        reason: state.reason.into(),
        message,
        last_transition_time: since,
        observed_generation: generation,
    };
    match old {
        Some(index) => conditions[index] = condition,
        None => conditions.push(condition),
    }
}

/// The API keeps times in whole seconds; what is stored must compare equal to what was sent.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut conditions = Vec::new();
        set_condition(&mut conditions, "A", ConditionState::yes("X", "one"), Some(1), at(10));
        set_condition(&mut conditions, "A", ConditionState::yes("Y", "two"), Some(2), at(20));
        assert_eq!(conditions[0].last_transition_time.0, at(10));
        assert_eq!((conditions[0].reason.as_str(), conditions[0].message.as_str()), ("Y", "two"));
        set_condition(&mut conditions, "A", ConditionState::no("Z", "three"), Some(2), at(30));
        assert_eq!(conditions[0].last_transition_time.0, at(30));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn a_message_is_cut_to_what_the_api_takes() {
        let mut conditions = Vec::new();
        let long = "é".repeat(MESSAGE_MAX);
        set_condition(&mut conditions, "A", ConditionState::no("X", long), None, at(1));
        assert!(conditions[0].message.len() <= MESSAGE_MAX);
    }
}
