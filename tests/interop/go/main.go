// Peer is the Go side of the interop tests: a gRPC server or client as Go programs with etcd are
// usually written. A test drives it as a child process: it sends commands as lines on stdin, and
// peer answers with one JSON object per line on stdout. ../README.md describes both.
//
// It builds against two generations of Debian's Go libraries, chosen by the build tags bookworm and
// trixie. The files with these tags hold all that differs.
package main

import (
	"fmt"
	"os"
	"runtime"
)

const usage = `usage:
  peer serve   --registry HOST:PORT[,..] --layout naming|article|plain --service NAME --listen HOST:PORT ..
  peer call    --registry HOST:PORT[,..] --layout naming|article|plain --service NAME ..
  peer put     --registry HOST:PORT[,..] --layout naming|article|plain --service NAME --id ID --addr HOST:PORT ..
  peer delete  --registry HOST:PORT[,..] --layout naming|article|plain --service NAME --id ID
  peer version
peer COMMAND --help lists the flags.`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	command := os.Args[1]
	arguments := os.Args[2:]
	var err error
	switch command {
	case "serve":
		err = serve(arguments)
	case "call":
		err = call(arguments)
	case "put":
		err = put(arguments)
	case "delete":
		err = remove(arguments)
	case "version":
		emit("version", fields{
			"generation": generation, "go": runtime.Version(), "grpc": grpcVersion, "etcd": etcdVersion,
		})
	default:
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	if err != nil {
		emit("error", fields{"message": err.Error()})
		os.Exit(1)
	}
}
