package main

import (
	"context"
	"fmt"
	"time"
)

// registration keeps one instance in etcd by a lease. Its owner reads the replies to keep-alives
// and asks for another attempt, so that all of it runs in one goroutine.
type registration struct {
	client   *etcdClient
	layout   layout
	instance instance
	ttl      time.Duration

	lease leaseID
	// The replies to keep-alives; closed when the lease is lost, nil while there is none.
	replies       <-chan *keepAliveReply
	stopKeepAlive context.CancelFunc
}

// register takes a lease, writes the instance and keeps the lease alive.
func (r *registration) register() error {
	ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
	defer cancel()
	lease, err := r.client.Grant(ctx, seconds(r.ttl))
	if err != nil {
		return err
	}
	r.lease = lease.ID
	if err := r.layout.put(ctx, r.client, r.instance, lease.ID); err != nil {
		return err
	}
	alive, stop := context.WithCancel(context.Background())
	replies, err := r.client.KeepAlive(alive, lease.ID)
	if err != nil {
		stop()
		return err
	}
	r.replies = replies
	r.stopKeepAlive = stop
	emit("registered", fields{
		"key": r.key(), "address": r.instance.address, "lease": fmt.Sprintf("%x", int64(lease.ID)),
		"ttl_s": lease.TTL,
	})
	return nil
}

// key is that of an instance which was checked when it was made.
func (r *registration) key() string {
	key, _ := r.layout.key(r.instance)
	return key
}

// alive reports whether the lease is kept alive, as far as this process knows.
func (r *registration) alive() bool {
	return r.replies != nil
}

// lost gives the lease up. Etcd may still have it, and the key with it.
func (r *registration) lost() {
	if r.alive() {
		r.stopKeepAlive()
	}
	r.replies = nil
}

// update writes the instance again, on the lease that it has.
func (r *registration) update(changed instance) error {
	ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
	defer cancel()
	if err := r.layout.put(ctx, r.client, changed, r.lease); err != nil {
		return err
	}
	r.instance = changed
	return nil
}

// deregister removes the instance, or what an outage of etcd has left of it. Even if etcd cannot be
// reached, the lease is no longer kept alive.
func (r *registration) deregister() error {
	r.lost()
	ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
	defer cancel()
	return r.layout.leave(ctx, r.client, r.instance, r.lease)
}

// seconds rounds up, since etcd counts whole seconds.
func seconds(ttl time.Duration) int64 {
	return int64((ttl + time.Second - 1) / time.Second)
}
