//! An API server for tests, in memory: collections of JSON objects with get, list by label, create,
//! server-side apply (as a merge), status, delete. It knows no schema and no controller.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// Objects by path, such as `/api/v1/namespaces/curve/secrets/demo-ca`.
#[derive(Clone, Default)]
pub struct ApiServer {
    objects: Arc<Mutex<BTreeMap<String, Value>>>,
    /// Writes, in order: method and path.
    writes: Arc<Mutex<Vec<String>>>,
}

impl ApiServer {
    pub fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
        });
        Client::new(service, "default")
    }

    pub fn put(&self, path: &str, object: Value) {
        self.objects.lock().expect("objects").insert(path.to_owned(), object);
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.objects.lock().expect("objects").get(path).cloned()
    }

    pub fn remove(&self, path: &str) {
        self.objects.lock().expect("objects").remove(path);
    }

    /// Paths of all objects that contain `part`.
    pub fn paths(&self, part: &str) -> Vec<String> {
        let objects = self.objects.lock().expect("objects");
        objects.keys().filter(|path| path.contains(part)).cloned().collect()
    }

    /// The writes since the last call.
    pub fn take_writes(&self) -> Vec<String> {
        std::mem::take(&mut self.writes.lock().expect("writes"))
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let path = parts.uri.path().to_owned();
        if parts.method != Method::GET {
            self.writes.lock().expect("writes").push(format!("{} {path}", parts.method));
        }
        let mut objects = self.objects.lock().expect("objects");
        let (status, answer) = match parts.method {
            Method::GET if is_object(&path) => match objects.get(&path) {
                Some(object) => (StatusCode::OK, object.clone()),
                None => (StatusCode::NOT_FOUND, failure(404)),
            },
            Method::GET => {
                let query = parts.uri.query().unwrap_or_default();
                (StatusCode::OK, list(&objects, &path, query))
            }
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                let path = format!("{path}/{name}");
                match objects.entry(path) {
                    Entry::Occupied(_) => (StatusCode::CONFLICT, failure(409)),
                    Entry::Vacant(free) => (StatusCode::CREATED, free.insert(body).clone()),
                }
            }
            Method::PATCH => {
                let path = path.strip_suffix("/status").unwrap_or(&path).to_owned();
                let object = objects.entry(path).or_insert(Value::Null);
                merge(object, body);
                (StatusCode::OK, object.clone())
            }
            Method::DELETE => match objects.remove(&path) {
                Some(object) => (StatusCode::OK, object),
                None => (StatusCode::NOT_FOUND, failure(404)),
            },
            _ => (StatusCode::METHOD_NOT_ALLOWED, failure(405)),
        };
        let bytes = serde_json::to_vec(&answer).expect("JSON");
        Response::builder().status(status).body(Body::from(bytes)).expect("a response")
    }
}

/// Whether the path ends in a name and not in a resource.
fn is_object(path: &str) -> bool {
    let after = path.split("/namespaces/").nth(1).map(|rest| rest.split('/').count());
    match after {
        Some(parts) => parts == 3,
        None => path.split('/').count() == if path.starts_with("/apis/") { 6 } else { 5 },
    }
}

fn list(objects: &BTreeMap<String, Value>, path: &str, query: &str) -> Value {
    let labels: Vec<(String, String)> = query
        .split('&')
        .filter_map(|part| part.strip_prefix("labelSelector="))
        .flat_map(|selector| {
            let selector = selector.replace("%3D", "=").replace("%2F", "/").replace("%2C", ",");
            let pairs = selector.split(',').map(ToOwned::to_owned).collect::<Vec<_>>();
            pairs.into_iter().filter_map(|pair| {
                pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()))
            })
        })
        .collect();
    let matches = |object: &Value| {
        labels.iter().all(|(key, value)| object["metadata"]["labels"][key.as_str()] == *value)
    };
    let inside =
        |key: &str| key.strip_prefix(path).is_some_and(|rest| rest.matches('/').count() == 1);
    let items = objects.iter().filter(|(key, object)| inside(key) && matches(object));
    let items: Vec<&Value> = items.map(|(_, object)| object).collect();
    json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items})
}

fn failure(code: u16) -> Value {
    // Clients go by the reason, not by the code.
    let reason = match code {
        404 => "NotFound",
        409 => "AlreadyExists",
        _ => "MethodNotAllowed",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "scenario", "reason": reason, "code": code,
    })
}

fn merge(target: &mut Value, patch: Value) {
    match patch {
        Value::Object(members) => {
            if !target.is_object() {
                *target = json!({});
            }
            for (key, value) in members {
                if value.is_null() {
                    target.as_object_mut().expect("an object").remove(&key);
                } else {
                    merge(&mut target[key.as_str()], value);
                }
            }
        }
        other => *target = other,
    }
}
