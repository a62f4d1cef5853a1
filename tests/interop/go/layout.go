package main

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/resolver"
)

// instance is what a server registers.
type instance struct {
	service  string
	id       string
	address  string
	metadata interface{}
}

// layout is one way of writing instances to etcd, with the client that reads them.
type layout interface {
	// key returns the instance's key, or why the layout cannot express the instance.
	key(i instance) (string, error)
	// put writes the instance without a condition. With noLease it stays until it is deleted.
	put(ctx context.Context, client *etcdClient, i instance, lease leaseID) error
	// delete removes the instance's key without a condition, whoever wrote it.
	delete(ctx context.Context, client *etcdClient, i instance) error
	// leave ends a registration as servers with this layout do.
	leave(ctx context.Context, client *etcdClient, i instance, lease leaseID) error
	// resolver returns the resolver of clients with this layout, and the target that they dial.
	resolver(client *etcdClient, service string) (resolver.Builder, string, error)
}

func layoutOf(name string) (layout, error) {
	switch name {
	case "naming":
		return naming{}, nil
	case "article":
		return article{}, nil
	case "plain":
		return plain{}, nil
	}
	return nil, fmt.Errorf("--layout must be naming, article or plain, not %q", name)
}

// deleteAndRevoke leaves by deleting the key, as most Go servers do. It takes the key from another
// process that has taken it over meanwhile.
func deleteAndRevoke(ctx context.Context, client *etcdClient, l layout, i instance, lease leaseID) error {
	if err := l.delete(ctx, client, i); err != nil {
		return err
	}
	return revoke(ctx, client, lease)
}

// revoke ends a lease. One that is gone already, after an outage of etcd, is no error.
func revoke(ctx context.Context, client *etcdClient, lease leaseID) error {
	_, err := client.Revoke(ctx, lease)
	var coded interface{ Code() codes.Code }
	if errors.As(err, &coded) && coded.Code() == codes.NotFound {
		return nil
	}
	return err
}

// putValue and deleteKey are what the layouts do that have no library.
func putValue(ctx context.Context, client *etcdClient, key, value string, lease leaseID) error {
	if lease == noLease {
		_, err := client.Put(ctx, key, value)
		return err
	}
	_, err := client.Put(ctx, key, value, withLease(lease))
	return err
}

func deleteKey(ctx context.Context, client *etcdClient, key string) error {
	_, err := client.Delete(ctx, key)
	return err
}

// noLease is no valid id in etcd.
const noLease leaseID = 0
