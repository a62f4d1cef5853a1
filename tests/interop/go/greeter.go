package main

import (
	"context"
	"io"
	"strings"
	"time"

	"interop/greeterpb"
)

// greeter answers as the Rust greeter in examples/greeter does.
type greeter struct {
	greeterpb.UnimplementedGreeterServer
	name string
}

func (g greeter) reply(request *greeterpb.GreetRequest) *greeterpb.GreetReply {
	return &greeterpb.GreetReply{
		Message: "hello " + request.GetName() + ", this is " + g.name,
		Server:  g.name,
		Payload: request.GetPayload(),
	}
}

func (g greeter) Greet(_ context.Context, request *greeterpb.GreetRequest) (*greeterpb.GreetReply, error) {
	time.Sleep(time.Duration(request.GetDelayMs()) * time.Millisecond)
	return g.reply(request), nil
}

func (g greeter) GreetMany(request *greeterpb.GreetManyRequest, stream greeterpb.Greeter_GreetManyServer) error {
	for n := uint32(0); n < request.GetCount(); n++ {
		if n > 0 {
			time.Sleep(time.Duration(request.GetIntervalMs()) * time.Millisecond)
		}
		if err := stream.Send(g.reply(&greeterpb.GreetRequest{Name: request.GetName()})); err != nil {
			return err
		}
	}
	return nil
}

func (g greeter) GreetAll(stream greeterpb.Greeter_GreetAllServer) error {
	var names []string
	for {
		request, err := stream.Recv()
		if err == io.EOF {
			return stream.SendAndClose(g.reply(&greeterpb.GreetRequest{Name: strings.Join(names, ", ")}))
		}
		if err != nil {
			return err
		}
		names = append(names, request.GetName())
	}
}

func (g greeter) Chat(stream greeterpb.Greeter_ChatServer) error {
	for {
		request, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(g.reply(request)); err != nil {
			return err
		}
	}
}
