package main

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/resolver"
)

// plain is what many programs write that use no library: the address alone, below a prefix.
type plain struct{}

func (plain) key(i instance) (string, error) {
	if i.id == "" {
		return "", errors.New("the id is missing")
	}
	if i.metadata != nil {
		return "", errors.New("the layout plain has no metadata")
	}
	return i.service + "/" + i.id, nil
}

func (p plain) put(ctx context.Context, client *etcdClient, i instance, lease leaseID) error {
	key, err := p.key(i)
	if err != nil {
		return err
	}
	return putValue(ctx, client, key, i.address, lease)
}

func (p plain) delete(ctx context.Context, client *etcdClient, i instance) error {
	key, err := p.key(i)
	if err != nil {
		return err
	}
	return deleteKey(ctx, client, key)
}

func (p plain) leave(ctx context.Context, client *etcdClient, i instance, lease leaseID) error {
	return deleteAndRevoke(ctx, client, p, i, lease)
}

func (plain) resolver(client *etcdClient, service string) (resolver.Builder, string, error) {
	return prefixBuilder{
		scheme: "plain",
		client: client,
		prefix: service + "/",
		decode: func(value []byte) (string, error) {
			return dialable(strings.TrimSpace(string(value)))
		},
	}, "plain:///" + service, nil
}
