package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"
)

// registryOptions are the flags that all commands share: which etcd, and where in it.
type registryOptions struct {
	registry string
	layout   string
	service  string
}

func (o *registryOptions) add(flags *flag.FlagSet) {
	flags.StringVar(&o.registry, "registry", "", "etcd's members, as HOST:PORT[,HOST:PORT..]")
	flags.StringVar(&o.layout, "layout", "naming", "keys and values: naming, article or plain")
	flags.StringVar(&o.service, "service", "", "the service: the path of its keys, without a slash at its end")
}

// open connects to etcd. It does not wait for the connection, as each request has a limit.
func (o *registryOptions) open() (*etcdClient, layout, error) {
	if o.registry == "" || o.service == "" {
		return nil, nil, errors.New("--registry and --service are required")
	}
	if strings.HasSuffix(o.service, "/") {
		return nil, nil, errors.New("--service must not end with a slash")
	}
	layout, err := layoutOf(o.layout)
	if err != nil {
		return nil, nil, err
	}
	client, err := newEtcdClient(etcdConfig{
		Endpoints:   strings.Split(o.registry, ","),
		DialTimeout: requestLimit,
	})
	return client, layout, err
}

// parse reads the flags, and ends the program if one is wrong.
func parse(flags *flag.FlagSet, arguments []string) {
	flags.Parse(arguments) // Exits by itself, due to flag.ExitOnError.
	if flags.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "unexpected argument %q\n", flags.Arg(0))
		os.Exit(2)
	}
}

// metadataOf reads metadata as Go programs hold it: objects become maps, numbers float64. An empty
// text means no metadata.
func metadataOf(text string) (interface{}, error) {
	if text == "" {
		return nil, nil
	}
	var metadata interface{}
	if err := json.Unmarshal([]byte(text), &metadata); err != nil {
		return nil, fmt.Errorf("the metadata is not JSON: %w", err)
	}
	return metadata, nil
}

// requestLimit bounds each request to etcd. Without a limit, a request waits for as long as etcd is
// away.
const requestLimit = 5 * time.Second
