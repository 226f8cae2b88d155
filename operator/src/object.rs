//! Writes typed Kubernetes objects as JSON literals, the form people know from manifests.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The typed object that `value` spells out. Null members count as absent.
///
/// The literal comes from our source, never from outside: one that does not fit its type, or has
/// a member that the type does not know, is a bug (the latter is caught in builds with debug
/// assertions, which all tests are).
pub fn typed<K: DeserializeOwned + Serialize>(mut value: Value) -> K {
    strip_nulls(&mut value);
    let object: K = match serde_json::from_value(value.clone()) {
        Ok(object) => object,
        Err(error) => panic!("object literal does not fit its type: {error}: {value}"),
    };
    debug_assert_eq!(serde_json::to_value(&object).ok(), Some(value), "unknown member");
    object
}

fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(strip_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    use super::*;

    #[test]
    fn absent_members_are_left_out() {
        let service: Service = typed(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": null},
        }));
        assert_eq!(service.metadata.namespace, None);
    }

    #[test]
    #[should_panic(expected = "unknown member")]
    fn a_misspelt_member_is_found() {
        typed::<Service>(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"nmae": "a"},
        }));
    }
}
