package main

import (
	"context"
	"encoding/json"
	"errors"

	"google.golang.org/grpc/resolver"
)

// article is the format of the article that this project grew from: the key <PSM>/<IP>, and a JSON
// value that repeats both. PSM is the service (product, service, module), IP an address with its
// port.
type article struct{}

type articleValue struct {
	PSM string
	IP  string
}

func (article) key(i instance) (string, error) {
	if i.id != i.address {
		return "", errors.New("the layout article has no id besides the address")
	}
	if i.metadata != nil {
		return "", errors.New("the layout article has no metadata")
	}
	return i.service + "/" + i.address, nil
}

func (a article) put(ctx context.Context, client *etcdClient, i instance, lease leaseID) error {
	key, err := a.key(i)
	if err != nil {
		return err
	}
	value, err := json.Marshal(articleValue{PSM: i.service, IP: i.address})
	if err != nil {
		return err
	}
	return putValue(ctx, client, key, string(value), lease)
}

func (a article) delete(ctx context.Context, client *etcdClient, i instance) error {
	key, err := a.key(i)
	if err != nil {
		return err
	}
	return deleteKey(ctx, client, key)
}

// leave only revokes the lease, as the article does. The key goes with it, unless another process
// has taken it over.
func (article) leave(ctx context.Context, client *etcdClient, i instance, lease leaseID) error {
	return revoke(ctx, client, lease)
}

func (article) resolver(client *etcdClient, service string) (resolver.Builder, string, error) {
	return prefixBuilder{
		scheme: "article",
		client: client,
		prefix: service + "/",
		decode: func(value []byte) (string, error) {
			var decoded articleValue
			if err := json.Unmarshal(value, &decoded); err != nil {
				return "", err
			}
			return dialable(decoded.IP)
		},
	}, "article:///" + service, nil
}
