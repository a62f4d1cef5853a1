package main

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"sync"
	"time"
)

type fields = map[string]interface{}

var stdout sync.Mutex

// emit writes one event as one line. Stdout is not buffered, so that the test sees it at once. Each
// event carries the time at which it is written, since a test may read it late.
func emit(event string, more fields) {
	if more == nil {
		more = fields{}
	}
	stdout.Lock()
	defer stdout.Unlock()
	// Under the lock, so that times never decrease from line to line.
	more["at_unix_ns"] = time.Now().UnixNano()
	rest, err := json.Marshal(more)
	if err != nil {
		panic(err) // Only strings, numbers and maps of them are emitted.
	}
	// The event comes first, for people who read along; a map would be sorted.
	line := `{"event":"` + event + `",` + string(rest[1:]) + "\n"
	if _, err := os.Stdout.WriteString(line); err != nil {
		os.Exit(1) // The test is gone.
	}
}

// command is one line of stdin: a word, and the rest of the line.
type command struct {
	word string
	rest string
}

// commands delivers the lines of stdin, and is closed at its end.
func commands() <-chan command {
	channel := make(chan command)
	go func() {
		defer close(channel)
		scanner := bufio.NewScanner(os.Stdin)
		for scanner.Scan() {
			line := strings.TrimSpace(scanner.Text())
			if line == "" {
				continue
			}
			parts := strings.SplitN(line, " ", 2)
			next := command{word: parts[0]}
			if len(parts) == 2 {
				next.rest = strings.TrimSpace(parts[1])
			}
			channel <- next
		}
	}()
	return channel
}

// refuse answers a command that cannot be carried out. The program goes on, and the test fails
// since it waits for another event.
func refuse(c command, reason string) {
	emit("error", fields{"command": c.word, "message": reason})
}
