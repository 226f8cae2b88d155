//! Hosts in one process, on simulated disks, over real TCP.

mod cluster;
mod conformance;
mod damage;
mod division;
mod failure;
mod measure;
mod membership;
mod reads;
mod replication;
mod strangers;
