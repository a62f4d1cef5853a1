package main

import (
	"context"
	"flag"
)

// put writes an entry as an administrator would: without a lease, and over whatever is there.
func put(arguments []string) error {
	return administer("put", arguments, func(l layout, ctx context.Context, client *etcdClient, i instance) error {
		return l.put(ctx, client, i, noLease)
	})
}

// remove deletes an entry, whoever wrote it.
func remove(arguments []string) error {
	return administer("delete", arguments, func(l layout, ctx context.Context, client *etcdClient, i instance) error {
		return l.delete(ctx, client, i)
	})
}

func administer(
	name string, arguments []string, change func(layout, context.Context, *etcdClient, instance) error,
) error {
	flags := flag.NewFlagSet(name, flag.ExitOnError)
	var options registryOptions
	options.add(flags)
	id := flags.String("id", "", "the instance's id, by default its address")
	address := flags.String("addr", "", "the instance's address")
	metadata := flags.String("metadata", "", "the instance's metadata, as JSON")
	parse(flags, arguments)

	client, layout, err := options.open()
	if err != nil {
		return err
	}
	defer client.Close()
	decoded, err := metadataOf(*metadata)
	if err != nil {
		return err
	}
	if *id == "" {
		*id = *address
	}
	target := instance{service: options.service, id: *id, address: *address, metadata: decoded}
	key, err := layout.key(target)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
	defer cancel()
	if err := change(layout, ctx, client, target); err != nil {
		return err
	}
	emit(name, fields{"key": key})
	return nil
}
