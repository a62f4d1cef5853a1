//go:build trixie

package main

import (
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	// Without "v3", since GOPATH mode knows only folders.
	"go.etcd.io/etcd/api/version"
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
	generation      = "trixie"
)
