// Package lines prints what a program was told: an event a line.
package lines

import (
	"encoding/json"
	"os"
)

var out = json.NewEncoder(os.Stdout)

func Told(event, id, data string) {
	if event == "" {
		event = "message"
	}
	out.Encode(map[string]string{"event": event, "id": id, "data": data})
}

func GaveUp(why error) {
	out.Encode(map[string]string{"gave_up": why.Error()})
}
