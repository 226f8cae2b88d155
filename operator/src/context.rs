//! What every controller has at hand.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::api::ClusterApi;
use crate::cluster::build::AddressFamily;
use crate::cluster::status::Notice;
use crate::metrics::Metrics;

/// How this operator was started.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the operator, of the connection Secrets and of erase Jobs.
    pub namespace: String,
    /// Image of clusters that name none; the operator's own.
    pub image: String,
    pub family: AddressFamily,
}

/// Shared by all reconciliations.
pub struct Context {
    pub client: Client,
    pub settings: Settings,
    pub api: Arc<dyn ClusterApi>,
    pub metrics: Metrics,
    recorder: Recorder,
}

impl Context {
    pub fn new(
        client: Client,
        settings: Settings,
        api: Arc<dyn ClusterApi>,
        metrics: Metrics,
    ) -> Self {
        let reporter = Reporter {
            controller: "curve-operator".into(),
            instance: std::env::var("POD_NAME").ok(),
        };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, settings, api, metrics, recorder }
    }

    /// Publishes events. One that the API server refuses is logged: it must not stop the work
    /// that it reports on.
    pub async fn publish(&self, about: &ObjectReference, action: &str, notices: &[Notice]) {
        for Notice { warning, reason, message } in notices {
            tracing::info!(object = ?about.name, reason, message, "event");
            let event = Event {
                type_: if *warning { EventType::Warning } else { EventType::Normal },
                reason: (*reason).into(),
                note: Some(shorten(message)),
                action: action.into(),
                secondary: None,
            };
            if let Err(error) = self.recorder.publish(&event, about).await {
                tracing::warn!(%error, reason, "cannot publish an event");
            }
        }
    }
}

/// The API refuses notes of more than 1024 bytes.
const NOTE_MAX: usize = 1000;

fn shorten(message: &str) -> String {
    if message.len() <= NOTE_MAX {
        return message.to_owned();
    }
    format!("{}…", &message[..message.floor_char_boundary(NOTE_MAX)])
}
