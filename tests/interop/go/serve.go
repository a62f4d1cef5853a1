package main

import (
	"flag"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"interop/greeterpb"
)

// serve runs a greeter that registers itself.
func serve(arguments []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	var options registryOptions
	options.add(flags)
	id := flags.String("id", "", "the instance's id; by default its address")
	listen := flags.String("listen", "127.0.0.1:0", "the address to listen on")
	advertise := flags.String("advertise", "", "the address to register, by default the listener's; port 0 means the listener's port")
	ttl := flags.Duration("ttl", 5*time.Second, "the lease's time to live; etcd counts whole seconds")
	metadata := flags.String("metadata", "", "the instance's metadata, as JSON")
	name := flags.String("name", "", "the server's name in its answers, by default the id")
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
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	address, err := advertised(*advertise, listener.Addr().String())
	if err != nil {
		return err
	}
	if *id == "" {
		*id = address
	}
	if *name == "" {
		*name = *id
	}
	self := instance{service: options.service, id: *id, address: address, metadata: decoded}
	if _, err := layout.key(self); err != nil {
		return err
	}

	server := grpc.NewServer()
	greeterpb.RegisterGreeterServer(server, greeter{name: *name})
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	emit("listening", fields{"address": listener.Addr().String()})

	r := &registration{client: client, layout: layout, instance: self, ttl: *ttl}
	if err := r.register(); err != nil {
		return err
	}
	if err := attend(r, failed); err != nil {
		return err
	}
	stop(server)
	emit("stopped", nil)
	return nil
}

// attend carries out the commands, and registers again when the lease is lost. It returns when the
// server has left etcd and must stop.
func attend(r *registration, failed <-chan error) error {
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM, os.Interrupt)
	input := commands()
	// Whether the instance should be in etcd, and when to try again if it may not be there.
	wanted := true
	var retry <-chan time.Time
	enter := func() {
		wanted = true
		retry = nil
		if err := r.register(); err != nil {
			emit("retrying", fields{"message": err.Error()})
			retry = time.After(retryDelay)
		}
	}
	leave := func() {
		if !wanted {
			return
		}
		wanted = false
		retry = nil
		if err := r.deregister(); err != nil {
			emit("error", fields{"command": "deregister", "message": err.Error()})
			return
		}
		emit("deregistered", fields{"key": r.key()})
	}
	for {
		select {
		case next, open := <-input:
			if !open {
				leave()
				return nil
			}
			switch next.word {
			case "metadata":
				update(r, next)
			case "register":
				if wanted {
					refuse(next, "it is registered")
					continue
				}
				enter()
			case "deregister":
				if !wanted {
					refuse(next, "it is not registered")
					continue
				}
				leave()
			case "stop":
				leave()
				return nil
			default:
				refuse(next, "the commands are metadata JSON, register, deregister and stop")
			}
		case _, open := <-r.replies:
			if open {
				continue
			}
			r.lost()
			emit("lost", fields{"key": r.key()})
			enter()
		case <-retry:
			enter()
		case <-terminate:
			leave()
			return nil
		case err := <-failed:
			return err
		}
	}
}

// update changes the metadata.
func update(r *registration, c command) {
	metadata, err := metadataOf(c.rest)
	if err != nil {
		refuse(c, err.Error())
		return
	}
	changed := r.instance
	changed.metadata = metadata
	if _, err := r.layout.key(changed); err != nil {
		refuse(c, err.Error())
		return
	}
	if !r.alive() {
		refuse(c, "it is not registered")
		return
	}
	if err := r.update(changed); err != nil {
		refuse(c, err.Error())
		return
	}
	emit("updated", fields{"key": r.key()})
}

// advertised returns the address to register, with the listener's port if it names none.
func advertised(wanted, listening string) (string, error) {
	if wanted == "" {
		return listening, nil
	}
	host, port, err := net.SplitHostPort(wanted)
	if err != nil {
		return "", err
	}
	if port != "0" {
		return wanted, nil
	}
	_, port, err = net.SplitHostPort(listening)
	return net.JoinHostPort(host, port), err
}

// stop lets calls complete, up to a limit: a client that never ends its stream must not hang the
// test.
func stop(server *grpc.Server) {
	cut := time.AfterFunc(10*time.Second, server.Stop)
	defer cut.Stop()
	server.GracefulStop()
}
