package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"sort"
	"time"

	"google.golang.org/grpc/resolver"
)

// prefixBuilder builds resolvers that follow all keys below a prefix of etcd. It belongs to one
// service, since the target's endpoint is read in different ways by different versions of grpc-go.
type prefixBuilder struct {
	scheme string
	client *etcdClient
	prefix string
	// decode returns the address that a value holds.
	decode func(value []byte) (string, error)
}

func (b prefixBuilder) Scheme() string {
	return b.scheme
}

func (b prefixBuilder) Build(
	_ resolver.Target, connection resolver.ClientConn, _ resolver.BuildOptions,
) (resolver.Resolver, error) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &prefixResolver{prefixBuilder: b, connection: connection, cancel: cancel, ended: make(chan struct{})}
	go r.run(ctx)
	return r, nil
}

type prefixResolver struct {
	prefixBuilder
	connection resolver.ClientConn
	cancel     context.CancelFunc
	ended      chan struct{}
}

// ResolveNow does nothing, since the watch delivers every change at once.
func (r *prefixResolver) ResolveNow(resolver.ResolveNowOptions) {}

func (r *prefixResolver) Close() {
	r.cancel()
	<-r.ended
}

// run follows the prefix, and begins again whenever that fails.
func (r *prefixResolver) run(ctx context.Context) {
	defer close(r.ended)
	for {
		err := r.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		log.Printf("%s: reading again in %s: %v", r.prefix, retryDelay, err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryDelay):
		}
	}
}

// follow reads the prefix and then watches it from the next revision, so that no change is lost in
// between. It returns when the watch ends, such as after a compaction.
func (r *prefixResolver) follow(ctx context.Context) error {
	read, cancelRead := context.WithTimeout(ctx, requestLimit)
	snapshot, err := r.client.Get(read, r.prefix, withPrefix())
	cancelRead()
	if err != nil {
		r.connection.ReportError(err)
		return err
	}
	// By key, because a deletion carries no value.
	addresses := map[string]string{}
	for _, entry := range snapshot.Kvs {
		r.set(addresses, string(entry.Key), entry.Value)
	}
	r.push(addresses)

	// A member that has lost its leader would otherwise keep the watch open in silence.
	watch, cancelWatch := context.WithCancel(withRequireLeader(ctx))
	defer cancelWatch()
	for changes := range r.client.Watch(watch, r.prefix, withPrefix(), withRev(snapshot.Header.Revision+1)) {
		if err := changes.Err(); err != nil {
			return err
		}
		for _, event := range changes.Events {
			if event.Type == eventTypeDelete {
				delete(addresses, string(event.Kv.Key))
			} else {
				r.set(addresses, string(event.Kv.Key), event.Kv.Value)
			}
		}
		r.push(addresses)
	}
	return errors.New("the watch has ended")
}

// set stores the address of a value. A value that cannot be read takes the former one's place, as
// that is no longer there.
func (r *prefixResolver) set(addresses map[string]string, key string, value []byte) {
	address, err := r.decode(value)
	if err != nil {
		log.Printf("%s: skipped: %v", key, err)
		delete(addresses, key)
		return
	}
	addresses[key] = address
}

// push hands the addresses to grpc-go, sorted, so that pick_first keeps its server when others
// change.
func (r *prefixResolver) push(addresses map[string]string) {
	list := make([]resolver.Address, 0, len(addresses))
	for _, address := range addresses {
		list = append(list, resolver.Address{Addr: address})
	}
	sort.Slice(list, func(a, b int) bool { return list[a].Addr < list[b].Addr })
	// Newer versions return an error if the balancer rejects the list, as it does with an empty one.
	// There is nothing to do about it: the next change comes through the watch.
	r.connection.UpdateState(resolver.State{Addresses: list})
}

// dialable returns the address if it is a host with a port.
func dialable(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	if host == "" || port == "" {
		return "", fmt.Errorf("%q is not HOST:PORT", address)
	}
	return address, nil
}

const retryDelay = time.Second
