//! The tests that may run beside each other in one process, as modules of one binary: it compiles
//! and links in a fraction of the time that a binary per file takes. The others, which count what a
//! process holds, set its logger or start themselves again, have a binary each.

mod channel_logs;
mod channel_tls;
mod etcd;
mod etcd_cluster_faults;
mod etcd_conformance;
mod etcd_layouts;
mod etcd_members;
mod etcd_own_leases;
mod etcd_proxy;
mod etcd_registrar_faults;
mod etcd_registrar_outages;
mod etcd_resolver_data;
mod etcd_resolver_faults;
mod etcd_security;
mod etcd_wide_sets;
mod fuzz;
mod generated;
mod outages;
mod server_etcd;
mod server_tls;
mod timed;
mod wall_clock;
