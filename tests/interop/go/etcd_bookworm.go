//go:build bookworm

package main

import (
	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/naming/endpoints"
	"go.etcd.io/etcd/clientv3/naming/resolver"
	"go.etcd.io/etcd/version"
)

// What the program uses of etcd's client, which has another import path in each generation.

type (
	endpoint       = endpoints.Endpoint
	etcdClient     = clientv3.Client
	etcdConfig     = clientv3.Config
	keepAliveReply = clientv3.LeaseKeepAliveResponse
	leaseID        = clientv3.LeaseID
)

var (
	etcdVersion       = version.Version
	newEtcdClient     = clientv3.New
	newManager        = endpoints.NewManager
	newNamingResolver = resolver.NewBuilder
	withLease         = clientv3.WithLease
	withPrefix        = clientv3.WithPrefix
	withRequireLeader = clientv3.WithRequireLeader
	withRev           = clientv3.WithRev
)

const (
	eventTypeDelete = clientv3.EventTypeDelete
	generation      = "bookworm"
)
