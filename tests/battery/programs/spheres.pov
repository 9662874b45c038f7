// A thousand mirroring spheres in no order.
#version 3.7;
global_settings { assumed_gamma 1 }
camera { location <0, 2, -9> look_at 0 }
light_source { <9, 9, -9> rgb 1 }
plane { y, -1 pigment { checker rgb 1 rgb 0.2 } }
#declare Numbers = seed(3);
#declare Count = 0;
union {
  #while (Count < 1000)
    sphere {
      <rand(Numbers) * 6 - 3, rand(Numbers) * 4 - 1, rand(Numbers) * 6>, 0.15
      pigment { rgb <rand(Numbers), rand(Numbers), rand(Numbers)> }
      finish { reflection 0.2 }
    }
    #declare Count = Count + 1;
  #end
}
