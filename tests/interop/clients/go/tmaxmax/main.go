// github.com/tmaxmax/go-sse: it reconnects by itself, and waits about as long as the server asks.
package main

import (
	"net/http"
	"os"

	"github.com/tmaxmax/go-sse"

	"msgpush/interop/lines"
)

func main() {
	request, err := http.NewRequest(http.MethodGet, os.Args[1], nil)
	if err != nil {
		panic(err)
	}
	connection := sse.NewConnection(request)
	// By default it never gets past an event of 64 KiB.
	connection.Buffer(nil, 1<<20)
	connection.SubscribeToAll(func(event sse.Event) {
		lines.Told(event.Type, event.LastEventID, event.Data)
	})
	lines.GaveUp(connection.Connect())
}
