package main

import (
	"context"
	"fmt"
	"io"

	"interop/greeterpb"
)

// kind is one of gRPC's four kinds of calls: each makes one whole call, checks the answer, and
// returns the name of the server that gave it.
type kind struct {
	name string
	call func(context.Context, greeterpb.GreeterClient) (string, error)
}

var kinds = []kind{
	{"unary", unary},
	{"server_stream", serverStream},
	{"client_stream", clientStream},
	{"bidi", bidi},
}

func unary(ctx context.Context, client greeterpb.GreeterClient) (string, error) {
	reply, err := client.Greet(ctx, &greeterpb.GreetRequest{Name: "unary", Payload: []byte("payload")})
	if err != nil {
		return "", err
	}
	if string(reply.GetPayload()) != "payload" {
		return "", fmt.Errorf("the payload came back as %q", reply.GetPayload())
	}
	return checked(reply, "unary")
}

func serverStream(ctx context.Context, client greeterpb.GreeterClient) (string, error) {
	const count = 3
	stream, err := client.GreetMany(ctx, &greeterpb.GreetManyRequest{Name: "many", Count: count})
	if err != nil {
		return "", err
	}
	server := ""
	for n := 0; ; n++ {
		reply, err := stream.Recv()
		if err == io.EOF {
			if n != count {
				return "", fmt.Errorf("%d answers instead of %d", n, count)
			}
			return server, nil
		}
		if err != nil {
			return "", err
		}
		if server, err = checked(reply, "many"); err != nil {
			return "", err
		}
	}
}

func clientStream(ctx context.Context, client greeterpb.GreeterClient) (string, error) {
	stream, err := client.GreetAll(ctx)
	if err != nil {
		return "", err
	}
	for _, name := range []string{"one", "two"} {
		// With io.EOF the call has ended, and CloseAndRecv returns why.
		if err := stream.Send(&greeterpb.GreetRequest{Name: name}); err != nil && err != io.EOF {
			return "", err
		}
	}
	reply, err := stream.CloseAndRecv()
	if err != nil {
		return "", err
	}
	return checked(reply, "one, two")
}

func bidi(ctx context.Context, client greeterpb.GreeterClient) (string, error) {
	stream, err := client.Chat(ctx)
	if err != nil {
		return "", err
	}
	server := ""
	for _, name := range []string{"ping", "pong"} {
		if err := stream.Send(&greeterpb.GreetRequest{Name: name}); err != nil && err != io.EOF {
			return "", err
		}
		reply, err := stream.Recv()
		if err != nil {
			return "", unexpected(err)
		}
		if server, err = checked(reply, name); err != nil {
			return "", err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return "", err
	}
	if _, err := stream.Recv(); err != io.EOF {
		return "", fmt.Errorf("an answer or error instead of the stream's end: %w", unexpected(err))
	}
	return server, nil
}

// checked returns the server's name if the reply greets whom it should.
func checked(reply *greeterpb.GreetReply, name string) (string, error) {
	expected := "hello " + name + ", this is " + reply.GetServer()
	if reply.GetServer() == "" || reply.GetMessage() != expected {
		return "", fmt.Errorf("the answer is %q from %q", reply.GetMessage(), reply.GetServer())
	}
	return reply.GetServer(), nil
}

// unexpected turns the end of a stream, or the lack of an error, into one.
func unexpected(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
