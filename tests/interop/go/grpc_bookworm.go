//go:build bookworm

package main

import "google.golang.org/grpc"

// What differs between the versions of grpc-go.

const grpcVersion = grpc.Version

func connect(target string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.Dial(target, options...)
}

func withoutTLS() grpc.DialOption {
	return grpc.WithInsecure()
}
