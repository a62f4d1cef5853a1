package main

import (
	"context"
	"errors"

	"google.golang.org/grpc/resolver"
)

// naming is the format of etcd's own library, written and read by that library: the key
// <service>/<id>, and a value with address and metadata.
type naming struct{}

func (naming) key(i instance) (string, error) {
	if i.id == "" {
		return "", errors.New("the id is missing")
	}
	return i.service + "/" + i.id, nil
}

func (n naming) put(ctx context.Context, client *etcdClient, i instance, lease leaseID) error {
	key, err := n.key(i)
	if err != nil {
		return err
	}
	manager, err := newManager(client, i.service)
	if err != nil {
		return err
	}
	value := endpoint{Addr: i.address, Metadata: i.metadata}
	if lease == noLease {
		return manager.AddEndpoint(ctx, key, value)
	}
	return manager.AddEndpoint(ctx, key, value, withLease(lease))
}

func (n naming) delete(ctx context.Context, client *etcdClient, i instance) error {
	key, err := n.key(i)
	if err != nil {
		return err
	}
	manager, err := newManager(client, i.service)
	if err != nil {
		return err
	}
	return manager.DeleteEndpoint(ctx, key)
}

func (n naming) leave(ctx context.Context, client *etcdClient, i instance, lease leaseID) error {
	return deleteAndRevoke(ctx, client, n, i, lease)
}

func (naming) resolver(client *etcdClient, service string) (resolver.Builder, string, error) {
	builder, err := newNamingResolver(client)
	return builder, "etcd:///" + service, err
}
