//! openraft's own suite for log storage and state machine.

use std::sync::Arc;

use curve_store::{FormatOptions, SimDisk, Store, StoreOptions, format};
use curve_types::{ClusterId, CopysetId, DeviceId};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::cluster::KeyValue;
use crate::StateMachine;
use crate::host::children::Children;
use crate::log::{InstallGate, LogStore};
use crate::metrics::Metrics;
use crate::replica::{Machine, Replica};
use crate::types::Types;

struct Builder;

impl StoreBuilder<Types, LogStore, Machine, Store> for Builder {
    async fn build(&self) -> Result<(Store, LogStore, Machine), StorageError<Types>> {
        let disk = Arc::new(SimDisk::new(64 << 20));
        let options = FormatOptions {
            cluster: ClusterId::random(),
            device: DeviceId::random(),
            name: "suite".to_owned(),
            size: 64 << 20,
        };
        format(&*disk, &options).expect("format");
        let (store, _) = Store::open(disk, StoreOptions::default()).expect("open");
        let group = store.create_group(CopysetId(1), Box::new(|_| {})).expect("create");
        let machine = || Ok(Box::new(KeyValue::default()) as Box<dyn StateMachine>);
        let replica =
            Replica::new(group.clone(), None, bytes::Bytes::new(), Children::default(), |_, _| {
                machine()
            })
            .expect("replica");
        let gate = InstallGate::new();
        let log = LogStore::new(store.clone(), group, gate.clone());
        let machine = Machine::new(store.clone(), replica, gate, Metrics::new());
        Ok((store, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_storage_keeps_openrafts_contract() {
    if let Err(error) = Suite::test_all(Builder).await {
        panic!("{error}");
    }
}
