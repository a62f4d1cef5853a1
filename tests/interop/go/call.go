package main

import (
	"context"
	"flag"
	"fmt"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"

	"interop/greeterpb"
)

// call runs a client that calls greeters without a break.
func call(arguments []string) error {
	flags := flag.NewFlagSet("call", flag.ExitOnError)
	var options registryOptions
	options.add(flags)
	authority := flags.String("authority", "", "the :authority of the calls, by default grpc-go's choice: the escaped service")
	policy := flags.String("policy", "round_robin", "grpc-go's balancing policy, round_robin or pick_first")
	interval := flags.Duration("interval", 5*time.Millisecond, "the time from one call to the next of each caller")
	concurrency := flags.Int("concurrency", 1, "the number of callers")
	timeout := flags.Duration("timeout", 2*time.Second, "the deadline of each call")
	parse(flags, arguments)

	client, layout, err := options.open()
	if err != nil {
		return err
	}
	defer client.Close()
	builder, target, err := layout.resolver(client, options.service)
	if err != nil {
		return err
	}
	dial := []grpc.DialOption{
		grpc.WithResolvers(builder),
		grpc.WithDefaultServiceConfig(fmt.Sprintf(`{"loadBalancingConfig":[{%q:{}}]}`, *policy)),
		withoutTLS(),
	}
	if *authority != "" {
		dial = append(dial, grpc.WithAuthority(*authority))
	}
	connection, err := connect(target, dial...)
	if err != nil {
		return err
	}
	defer connection.Close()
	emit("calling", fields{"target": target, "policy": *policy})

	counts := newTally()
	stopped, stop := context.WithCancel(context.Background())
	defer stop()
	var callers sync.WaitGroup
	for n := 0; n < *concurrency; n++ {
		callers.Add(1)
		go func() {
			defer callers.Done()
			keepCalling(stopped, greeterpb.NewGreeterClient(connection), counts, *interval, *timeout)
		}()
	}
	answer(counts)
	// Calls in flight complete and count.
	stop()
	callers.Wait()
	counts.report()
	return nil
}

// answer carries out the commands until the last.
func answer(counts *tally) {
	for next := range commands() {
		switch next.word {
		case "report":
			counts.report()
		case "wait":
			servers, err := strconv.Atoi(next.rest)
			if err != nil {
				refuse(next, "wait needs a number of servers")
				continue
			}
			counts.wait(servers)
		case "stop":
			return
		default:
			refuse(next, "the commands are report, wait N and stop")
		}
	}
}

// keepCalling makes one call after the other.
func keepCalling(
	stopped context.Context, client greeterpb.GreeterClient, counts *tally, interval, timeout time.Duration,
) {
	var pace <-chan time.Time
	if interval > 0 {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		pace = ticker.C
	}
	for n := 0; stopped.Err() == nil; n++ {
		// One further at each round, or round_robin would give all calls of a kind to the same of four
		// servers.
		kind := kinds[(n+n/len(kinds))%len(kinds)]
		// Not a child of stopped, so that the end of the test fails no call.
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		server, err := kind.call(ctx, client)
		cancel()
		if err != nil {
			counts.failed(err)
		} else {
			counts.succeeded(kind.name, server)
		}
		if pace == nil {
			continue
		}
		select {
		case <-pace:
		case <-stopped.Done():
		}
	}
}
